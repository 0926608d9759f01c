// Products with packed matrices. They are packed for "rows x matrix": panels of LANES columns, each [depth][LANES],
// zero-padded. All other arrays are row-major.
//
// With BF16, numbers are rounded to bf16 on their way into a product, and two that follow each other lie in one place:
// the processor multiplies both and adds them to a sum in single precision. Panels are then half as deep.

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

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

typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float Group __attribute__((vector_size(4 * LANES)));

#ifdef BF16
#ifndef __AVX512BF16__
#error "this compiler or processor has no products in bf16"
#endif
#include <immintrin.h>
#define MOST_ROUNDED 48       // rows that are rounded together at most,
#define ROUNDED_NUMBERS 16384  // and pairs, which live on the stack
#define MULTIPLY_ADD(sum, a, b) \
    ((Group)_mm512_dpbf16_ps((__m512)(sum), (__m512bh)_mm512_set1_ps(a), (__m512bh)(__m512)(b)))
#define DEPTH(inputs) (((inputs) + 1) / 2)
#else
#define MULTIPLY_ADD(sum, a, b) ((sum) + (a) * (b))
#define DEPTH(inputs) (inputs)
#endif

// What every kernel returns. Without memory its results mean nothing.
enum { DONE, OUT_OF_MEMORY };

// Memory for the duration of a call, from the beginning of a cache line on: a vector that lies in two lines costs twice
// the time. NULL where there is none.
static inline float *claim(size_t numbers) {
    return aligned_alloc(64, (sizeof(float) * numbers / 64 + 1) * 64);
}

// --- Packing ---

static inline size_t packed_size(int inputs, int columns) {
    return (size_t)((columns + LANES - 1) / LANES) * LANES * DEPTH(inputs);
}

#ifdef BF16

// The lanes that `count` numbers fill, and such numbers with zeros after them.
static inline __mmask16 filled(int count) { return count >= LANES ? 0xffff : (1u << (count > 0 ? count : 0)) - 1; }

static inline __m512 some(const float *x, int count) {
    return count > 0 ? _mm512_maskz_loadu_ps(filled(count), x) : (__m512){0};
}

static inline __m512i side_by_side(__m512 x, __m512 y) {
    __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x));
    return _mm512_or_si512(low, _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(y)), 16));
}

// `count` pairs of numbers, x[i] with y[i]. y may be NULL: zeros.
static inline void pair_rows(const float *x, const float *y, float *pairs, int count) {
    int i = 0;
    for (; y && i + LANES <= count; i += LANES)
        _mm512_storeu_si512(pairs + i, side_by_side(_mm512_loadu_ps(x + i), _mm512_loadu_ps(y + i)));
    for (; i < count; i += LANES) {
        __m512 high = y ? some(y + i, count - i) : (__m512){0};
        _mm512_mask_storeu_epi32(pairs + i, filled(count - i), side_by_side(some(x + i, count - i), high));
    }
}

// The numbers of a row in pairs, x[2 i] with x[2 i + 1].
static inline void pair_up(const float *x, float *pairs, int count) {
    int i = 0;
    for (; i + 2 * LANES <= count; i += 2 * LANES) {
        __m512bh both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + i + LANES), _mm512_loadu_ps(x + i));
        _mm512_storeu_si512(pairs + i / 2, (__m512i)both);
    }
    if (i == count) return;
    __m512 rest = i + LANES < count ? some(x + i + LANES, count - i - LANES) : (__m512){0};
    __m512bh both = _mm512_cvtne2ps_pbh(rest, some(x + i, count - i));
    _mm512_mask_storeu_epi32(pairs + i / 2, filled(DEPTH(count - i)), (__m512i)both);
}

#endif

// Packs matrix[i, j] = m[i * row + j * column] of [inputs, columns] into panels. One of both strides is 1, along which
// memory is read.
static inline void pack_into(float *packed, const float *m, size_t row, size_t column, int inputs, int columns) {
    int depth = DEPTH(inputs), whole = columns / LANES * LANES, rest = columns - whole;
    size_t panel = (size_t)LANES * depth;
    if (rest) memset(packed + (size_t)whole * depth, 0, sizeof(float) * panel);
    if (row == 1) {
        for (int j = 0; j < columns; j++) {
            float *out = packed + j / LANES * panel + j % LANES;
            const float *line = m + j * column;
#ifdef BF16
            float pairs[depth];
            pair_up(line, pairs, inputs);
            line = pairs;
#endif
            for (int k = 0; k < depth; k++) out[k * LANES] = line[k];
        }
        return;
    }
    for (int k = 0; k < depth; k++, packed += LANES) {
#ifdef BF16
        const float *line = m + 2 * k * row, *next = 2 * k + 1 < inputs ? line + row : NULL;
        for (int j = 0; j < columns; j += LANES) {
            int here = columns - j < LANES ? columns - j : LANES;
            pair_rows(line + j, next ? next + j : NULL, packed + (size_t)j * depth, here);
        }
#else
        const float *line = m + k * row;
        for (int j = 0; j < whole; j += LANES) *(Lanes *)(packed + (size_t)j * depth) = *(const Lanes *)(line + j);
        for (int j = 0; j < rest; j++) packed[(size_t)whole * depth + j] = line[whole + j];
#endif
    }
}

static inline float *pack_blocks(const float *m, size_t row, size_t column, int blocks, int inputs, int columns) {
    size_t stride = packed_size(inputs, columns);
    float *packed = claim(blocks * stride);
    for (int g = 0; packed && g < blocks; g++)
        pack_into(packed + g * stride, m + (size_t)g * inputs * columns, row, column, inputs, columns);
    return packed;
}

static inline float *pack(const float *m, size_t row, size_t column, int inputs, int columns) {
    return pack_blocks(m, row, column, 1, inputs, columns);
}

// --- Products ---

// What the sums of a product begin with: row r is at `place + r * stride`.
typedef struct {
    const float *place;
    size_t stride;
} Start;

#define NOTHING ((Start){NULL, 0})
#define EVERY_ROW(bias) ((Start){bias, 0})
#define ROWS(x, stride) ((Start){x, stride})

static inline Start right_of(Start start, int columns) {
    return start.place ? ROWS(start.place + columns, start.stride) : NOTHING;
}

static inline Start below(Start start, int rows) {
    return start.place ? ROWS(start.place + rows * start.stride, start.stride) : NOTHING;
}

// One tile: `rows` x `panels` panels, with both counts known to the compiler. a[r, k] is at a[r * row + k * step].
static inline __attribute__((always_inline)) void tile(const int rows, const int panels, const float *a, size_t row,
                                                       size_t step, const float *packed, float *c, size_t ldc,
                                                       int depth, int columns, Start start) {
    Group sum[TALL][PANELS];
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < panels; p++) {
            sum[r][p] = (Group){0};
            if (!start.place) continue;
            const float *begin = start.place + r * start.stride + p * LANES;
            if (columns - p * LANES >= LANES) sum[r][p] = *(const Lanes *)begin;
            else
                for (int j = 0; j < (columns - p * LANES) % LANES; j++) sum[r][p][j] = begin[j];
        }
    for (int k = 0; k < depth; k++) {
        Group b[PANELS];
        for (int p = 0; p < panels; p++) b[p] = *(const Lanes *)(packed + ((size_t)p * depth + k) * LANES);
        for (int r = 0; r < rows; r++)
            for (int p = 0; p < panels; p++) sum[r][p] = MULTIPLY_ADD(sum[r][p], a[r * row + k * step], b[p]);
    }
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < panels; p++) {
            float *out = c + r * ldc + p * LANES, part[LANES];
            if (columns - p * LANES >= LANES) *(Lanes *)out = sum[r][p];
            else {
                *(Lanes *)part = sum[r][p];
                for (int j = 0; j < (columns - p * LANES) % LANES; j++) out[j] = part[j];
            }
        }
}

static inline __attribute__((always_inline)) void strip(const int panels, const float *a, size_t row, size_t step,
                                                        const float *packed, float *c, size_t ldc, int rows,
                                                        int depth, int columns, Start start) {
    int r = 0;
    for (; r + TALL <= rows; r += TALL)
        tile(TALL, panels, a + r * row, row, step, packed, c + r * ldc, ldc, depth, columns, below(start, r));
    for (; r + 2 <= rows; r += 2)
        tile(2, panels, a + r * row, row, step, packed, c + r * ldc, ldc, depth, columns, below(start, r));
    for (; r < rows; r++)
        tile(1, panels, a + r * row, row, step, packed, c + r * ldc, ldc, depth, columns, below(start, r));
}

static inline __attribute__((always_inline)) void strips(const float *a, size_t row, size_t step, const float *packed,
                                                         float *c, size_t ldc, int rows, int depth, int columns,
                                                         Start start) {
    int panels = (columns + LANES - 1) / LANES, p = 0;
    while (p < panels) {
        const float *part = packed + (size_t)p * depth * LANES;
        int left = panels - p < PANELS ? panels - p : PANELS, rest = columns - p * LANES;
        float *out = c + p * LANES;
        Start from = right_of(start, p * LANES);
        switch (left) {
#if PANELS == 4
            case 4: strip(4, a, row, step, part, out, ldc, rows, depth, rest, from); break;
            case 3: strip(3, a, row, step, part, out, ldc, rows, depth, rest, from); break;
#endif
            case 2: strip(2, a, row, step, part, out, ldc, rows, depth, rest, from); break;
            default: strip(1, a, row, step, part, out, ldc, rows, depth, rest, from);
        }
        p += left;
    }
}

// c[rows, columns] = start + a[rows, inputs] x packed. Of a, row or step is 1.
static inline __attribute__((always_inline)) void multiply(const float *a, size_t row, size_t step,
                                                           const float *packed, float *c, size_t ldc, int rows,
                                                           int inputs, int columns, Start start) {
    int depth = DEPTH(inputs);
#ifdef BF16
    int most = MOST_ROUNDED;
    if (depth > ROUNDED_NUMBERS / MOST_ROUNDED)
        most = ROUNDED_NUMBERS / depth < TALL ? TALL : ROUNDED_NUMBERS / depth / TALL * TALL;
    float pairs[(rows < most ? rows : most) * depth];
    for (int r = 0; r < rows; r += most) {
        int here = rows - r < most ? rows - r : most;
        const float *from = a + r * row;
        float *to = c + r * ldc;
        if (step == 1) {
            for (int i = 0; i < here; i++) pair_up(from + i * row, pairs + (size_t)i * depth, inputs);
            strips(pairs, depth, 1, packed, to, ldc, here, depth, columns, below(start, r));
        } else {
            for (int k = 0; k < depth; k++, from += 2 * step)
                pair_rows(from, 2 * k + 1 < inputs ? from + step : NULL, pairs + (size_t)k * here, here);
            strips(pairs, 1, here, packed, to, ldc, here, depth, columns, below(start, r));
        }
    }
#else
    strips(a, row, step, packed, c, ldc, rows, depth, columns, start);
#endif
}

static inline void product(const float *a, size_t lda, const float *packed, float *c, size_t ldc, int rows, int inputs,
                           int columns, Start start) {
    multiply(a, lda, 1, packed, c, ldc, rows, inputs, columns, start);
}

// The same for a block-diagonal matrix: `blocks` packed matrices of [inputs, columns] one after the other.
static inline void block_product(const float *a, size_t lda, const float *packed, float *c, size_t ldc, int rows,
                                 int blocks, int inputs, int columns, Start start) {
    size_t stride = packed_size(inputs, columns);
    for (int g = 0; g < blocks; g++)
        product(a + g * inputs, lda, packed + g * stride, c + g * columns, ldc, rows, inputs, columns,
                right_of(start, g * columns));
}
