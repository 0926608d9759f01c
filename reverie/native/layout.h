// How a structure lies in memory, for bindings.py, which mirrors it: the fields by name, and a last one of its size.

#include <stddef.h>

typedef struct {
    const char *name;
    size_t offset, size;
} Field;

#define FIELD(type, field) {#field, offsetof(type, field), sizeof(((type *)0)->field)}
#define LAYOUT(type, ...) const Field layout_of_##type[] = {__VA_ARGS__, {NULL, sizeof(type), 0}}
