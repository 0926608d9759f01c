// What all kernels share: products with packed matrices, the norm with its activation, and stacks of layers.
//
// Matrices are packed for the product "rows x matrix": panels of LANES columns, each [inputs][LANES], zero-padded.
// All other arrays are row-major.

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// LANES: columns of a panel, one register; a vector of another length would live in memory.
// PANELS: panels that a tile of TALL rows multiplies at once, as many as the register file holds.
#if defined(__AVX512F__)
#define LANES 16
#define PANELS 4
#elif defined(__AVX__)
#define LANES 8
#define PANELS 2
#elif defined(__aarch64__)
#define LANES 4
#define PANELS 4
#else
#define LANES 4
#define PANELS 2
#endif
#define TALL 6
// SLICE: rows that the gradient of a matrix takes together; with a power of two, panels would share lines of the cache.
#define SLICE 152
#define EPS 1e-4f

typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float Group __attribute__((vector_size(4 * LANES)));

// Memory for the duration of a call, from the beginning of a cache line on: a vector that lies in two lines costs twice
// the time. Without memory the process ends with the exit code for that.
static inline float *claim(size_t numbers) {
    float *memory = aligned_alloc(64, (sizeof(float) * numbers / 64 + 1) * 64);
    if (!memory) {
        fputs("reverie: out of memory in a native kernel\n", stderr);
        _exit(6);
    }
    return memory;
}

static inline size_t packed_size(int inputs, int columns) {
    return (size_t)((columns + LANES - 1) / LANES) * LANES * inputs;
}

// --- Products ---

// One tile: `rows` x `panels` panels, with both counts known to the compiler. a[r, k] is at a[r * row + k * step].
static inline __attribute__((always_inline)) void tile(const int rows, const int panels, const float *a, size_t row,
                                                       size_t step, const float *packed, float *c, size_t ldc,
                                                       int inputs, int columns, int add) {
    Group sum[TALL][PANELS];
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < panels; p++) sum[r][p] = (Group){0};
    for (int k = 0; k < inputs; k++) {
        Group b[PANELS];
        for (int p = 0; p < panels; p++) b[p] = *(const Lanes *)(packed + ((size_t)p * inputs + k) * LANES);
        for (int r = 0; r < rows; r++)
            for (int p = 0; p < panels; p++) sum[r][p] += a[r * row + k * step] * b[p];
    }
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < panels; p++) {
            float *out = c + r * ldc + p * LANES;
            if (columns - p * LANES >= LANES) {
                if (add) sum[r][p] += *(Lanes *)out;
                *(Lanes *)out = sum[r][p];
            } else {
                float result[LANES];
                *(Lanes *)result = sum[r][p];
                for (int j = 0; j < (columns - p * LANES) % LANES; j++) out[j] = add ? out[j] + result[j] : result[j];
            }
        }
}

static inline __attribute__((always_inline)) void strip(const int panels, const float *a, size_t row, size_t step,
                                                        const float *packed, float *c, size_t ldc, int rows,
                                                        int inputs, int columns, int add) {
    int r = 0;
    for (; r + TALL <= rows; r += TALL)
        tile(TALL, panels, a + r * row, row, step, packed, c + r * ldc, ldc, inputs, columns, add);
    for (; r + 2 <= rows; r += 2)
        tile(2, panels, a + r * row, row, step, packed, c + r * ldc, ldc, inputs, columns, add);
    for (; r < rows; r++) tile(1, panels, a + r * row, row, step, packed, c + r * ldc, ldc, inputs, columns, add);
}

// c[rows, columns] = a[rows, inputs] x packed, or += with `add`.
static inline __attribute__((always_inline)) void multiply(const float *a, size_t row, size_t step,
                                                           const float *packed, float *c, size_t ldc, int rows,
                                                           int inputs, int columns, int add) {
    int panels = (columns + LANES - 1) / LANES, p = 0;
    while (p < panels) {
        const float *part = packed + (size_t)p * inputs * LANES;
        int left = panels - p < PANELS ? panels - p : PANELS, rest = columns - p * LANES;
        float *out = c + p * LANES;
        switch (left) {
#if PANELS == 4
            case 4: strip(4, a, row, step, part, out, ldc, rows, inputs, rest, add); break;
            case 3: strip(3, a, row, step, part, out, ldc, rows, inputs, rest, add); break;
#endif
            case 2: strip(2, a, row, step, part, out, ldc, rows, inputs, rest, add); break;
            default: strip(1, a, row, step, part, out, ldc, rows, inputs, rest, add);
        }
        p += left;
    }
}

static inline void product(const float *a, size_t lda, const float *packed, float *c, size_t ldc, int rows, int inputs,
                           int columns, int add) {
    multiply(a, lda, 1, packed, c, ldc, rows, inputs, columns, add);
}

// The same for a block-diagonal matrix: `blocks` packed matrices of [inputs, columns] one after the other.
static inline void block_product(const float *a, size_t lda, const float *packed, float *c, size_t ldc, int rows,
                                 int blocks, int inputs, int columns, int add) {
    size_t stride = packed_size(inputs, columns);
    for (int g = 0; g < blocks; g++)
        product(a + g * inputs, lda, packed + g * stride, c + g * columns, ldc, rows, inputs, columns, add);
}

// --- RMS norm, then SiLU ---

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define FMA(a, b, c) __builtin_fmaf(a, b, c)
#else
#define FMA(a, b, c) ((a) * (b) + (c))
#endif

// e^x to 1e-7 of its value (4e-6 where no product is fused with a sum, and -ffast-math makes one of both parts below),
// in a form that compilers turn into vector code: 2^n times a polynomial of Cephes. ln 2 is taken off in two parts, the
// first of which has room for n.
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float n = rintf(x * 1.44269504f), r = FMA(n, 2.12194440e-4f, FMA(n, -0.693359375f, x));
    float series = 4.16657959e-2f + r * (8.33345191e-3f + r * (1.39819995e-3f + r * 1.98756915e-4f));
    series = 1.0f + (r + r * r * (0.500000012f + r * (0.166666655f + r * series)));
    union { int32_t bits; float value; } power = {((int32_t)n + 127) << 23};
    return series * power.value;
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

static inline float inverse_root(const float *x, int width) {
    float square = 0;
    for (int j = 0; j < width; j++) square += x[j] * x[j];
    return 1.0f / sqrtf(square / width + EPS);
}

static inline void norm_silu(const float *x, const float *scale, float *y, int width) {
    float inverse = inverse_root(x, width);
    for (int j = 0; j < width; j++) {
        float z = x[j] * inverse * scale[j];
        y[j] = z * sigmoid(z);
    }
}

// dx from dy; adds to dscale.
static inline void norm_silu_back(const float *dy, const float *x, const float *scale, float *dx, float *dscale,
                                  int width) {
    float inverse = inverse_root(x, width), along = 0;
    for (int j = 0; j < width; j++) {
        float n = x[j] * inverse, z = n * scale[j], s = sigmoid(z);
        float dz = dy[j] * s * (1.0f + z * (1.0f - s));
        dscale[j] += dz * n;
        dx[j] = dz * scale[j];
        along += dx[j] * n;
    }
    along /= width;
    for (int j = 0; j < width; j++) dx[j] = inverse * (dx[j] - x[j] * inverse * along);
}

// --- Stacks of layers: linear, then norm and SiLU where there is a scale ---

typedef struct {
    const float *weight, *bias, *scale;  // [outputs, inputs], [outputs], [outputs] or NULL
    float *before, *after;               // [rows, outputs], of norm and SiLU; without a scale there is only before
    int inputs, outputs;
} Layer;

// Packs matrix[i, j] = m[i * row + j * column] of [inputs, columns] into panels. One of both strides is 1, and memory is
// read along it.
static inline void pack_into(float *packed, const float *m, size_t row, size_t column, int inputs, int columns) {
    int whole = columns / LANES * LANES, rest = columns - whole;
    size_t panel = (size_t)LANES * inputs;
    if (rest) memset(packed + (size_t)whole * inputs, 0, sizeof(float) * panel);
    if (row == 1) {
        for (int j = 0; j < columns; j++)
            for (int k = 0; k < inputs; k++) packed[j / LANES * panel + k * LANES + j % LANES] = m[j * column + k];
        return;
    }
    for (int k = 0; k < inputs; k++, packed += LANES, m += row) {
        for (int j = 0; j < whole; j += LANES) *(Lanes *)(packed + (size_t)j * inputs) = *(const Lanes *)(m + j);
        for (int j = 0; j < rest; j++) packed[(size_t)whole * inputs + j] = m[whole + j];
    }
}

static inline float *pack(const float *m, size_t row, size_t column, int inputs, int columns) {
    float *packed = claim(packed_size(inputs, columns));
    pack_into(packed, m, row, column, inputs, columns);
    return packed;
}

static inline void fill(float *c, size_t ldc, const float *bias, int rows, int width) {
    for (int r = 0; r < rows; r++) memcpy(c + r * ldc, bias, sizeof(float) * width);
}

static inline int widest(const Layer *layers, int count) {
    int width = 0;
    for (int i = 0; i < count; i++) width = layers[i].outputs > width ? layers[i].outputs : width;
    return width;
}

// Some rows through all layers. The last layer's results go to its before and after, those of the others do too if
// `keep`, else to scratch, which holds three times rows x widest.
static inline void mlp_rows(const Layer *layers, int count, float *const *packed, const float *x, int64_t begin,
                            int rows, float *scratch, size_t width, int keep) {
    for (int i = 0; i < count; i++) {
        Layer l = layers[i];
        int last = i == count - 1;
        float *before = keep || (last && !l.scale) ? l.before + begin * l.outputs : scratch;
        fill(before, l.outputs, l.bias, rows, l.outputs);
        product(x, l.inputs, packed[i], before, l.outputs, rows, l.inputs, l.outputs, 1);
        x = before;
        if (l.scale) {
            float *after = keep || last ? l.after + begin * l.outputs : scratch + (1 + i % 2) * rows * width;
            for (int r = 0; r < rows; r++) norm_silu(before + r * l.outputs, l.scale, after + r * l.outputs, l.outputs);
            x = after;
        }
    }
}

