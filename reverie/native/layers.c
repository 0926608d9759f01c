// The layers of nets/layers.py: RMS norm with SiLU, and stacks of linear layers.

#include "shared.h"

void norm_silu_forward(const float *x, const float *scale, float *y, int64_t rows, int width) {
#pragma omp parallel for schedule(static) if (rows * width > 16384)
    for (int64_t r = 0; r < rows; r++) norm_silu(x + r * width, scale, y + r * width, width);
}

// dscale is [parts, width], zeroed: one row per part of the rows, summed by the caller.
void norm_silu_backward(const float *dy, const float *x, const float *scale, float *dx, float *dscale, int64_t rows,
                        int width, int parts) {
#pragma omp parallel for schedule(static) if (rows * width > 16384)
    for (int part = 0; part < parts; part++)
        for (int64_t r = rows * part / parts; r < rows * (part + 1) / parts; r++)
            norm_silu_back(dy + r * width, x + r * width, scale, dx + r * width, dscale + (size_t)part * width, width);
}

// Adds what at most SLICE rows make of the gradients of a matrix, d^T x for each block of both, and of its bias, the
// sum of each column of d. `packed` is scratch.
static void accumulate(const float *d, const float *x, int rows, int blocks, int outputs, int inputs, float *packed,
                       float *matrix, double *bias) {
    size_t ldd = (size_t)blocks * outputs, ldx = (size_t)blocks * inputs;
    for (int g = 0; g < blocks; g++, matrix += (size_t)outputs * inputs) {
        pack_into(packed, x + g * inputs, ldx, 1, rows, inputs);
        multiply(d + g * outputs, 1, ldd, packed, matrix, inputs, outputs, rows, inputs, ROWS(matrix, inputs));
    }
    for (int r = 0; r < rows; r++)  // a long sum in single precision would lose digits
        for (size_t j = 0; j < ldd; j++) bias[j] += d[r * ldd + j];
}

static void *zeros(size_t bytes) { return memset(claim(bytes / sizeof(float) + 1), 0, bytes); }

// The sums of all parts, each `stride` after the one before.
static void total(float *into, const float *sums, size_t size, size_t stride, int parts) {
#pragma omp parallel for schedule(static) if (parts > 1 && size > 16384)
    for (size_t i = 0; i < size; i++) {
        float sum = 0;
        for (int part = 0; part < parts; part++) sum += sums[part * stride + i];
        into[i] = sum;
    }
}

static void total_of_doubles(float *into, const double *sums, size_t size, size_t stride, int parts) {
    for (size_t i = 0; i < size; i++) {
        double sum = 0;
        for (int part = 0; part < parts; part++) sum += sums[part * stride + i];
        into[i] = sum;
    }
}

// The gradients of a matrix [blocks, outputs, inputs] and its bias. Every part of the rows has sums of its own, and
// goes through its rows in slices that stay in the cache.
void matrix_gradient(const float *d, const float *x, float *into, float *bias, int64_t rows, int blocks, int outputs,
                     int inputs, int parts) {
    size_t ldd = (size_t)blocks * outputs, ldx = (size_t)blocks * inputs, size = ldd * inputs;
    float *sums = zeros(sizeof(float) * parts * size);
    double *columns = zeros(sizeof(double) * parts * ldd);
#pragma omp parallel for schedule(static) if (parts > 1)
    for (int part = 0; part < parts; part++) {
        int64_t end = rows * (part + 1) / parts;
        float *packed = claim(packed_size(SLICE, inputs));
        for (int64_t r = rows * part / parts; r < end; r += SLICE)
            accumulate(d + r * ldd, x + r * ldx, end - r < SLICE ? end - r : SLICE, blocks, outputs, inputs, packed,
                       sums + part * size, columns + part * ldd);
        free(packed);
    }
    total(into, sums, size, size, parts);
    total_of_doubles(bias, columns, ldd, ldd, parts);
    free(sums);
    free(columns);
}

void mlp_forward(const Layer *layers, int count, const float *x, int64_t rows, int block, int keep) {
    float *packed[count];
    pack_layers(layers, count, packed);
    size_t width = widest(layers, count);
#pragma omp parallel for schedule(static) if (rows > block)
    for (int64_t begin = 0; begin < rows; begin += block) {
        float *scratch = claim(3 * block * width);
        mlp_rows(layers, count, packed, x + begin * layers[0].inputs, begin,
                 rows - begin < block ? rows - begin : block, scratch, width, keep);
        free(scratch);
    }
    free_all(packed, count);
}

// The gradients of x (unless dx is NULL), of matrices and biases (unless a layer's places are NULL) and of scales.
void mlp_backward(const Layer *layers, int count, const float *x, const float *dy, float *dx, float *const *dweight,
                  float *const *dbias, float *const *dscale, int64_t rows, int parts) {
    float *packed[count];
    size_t matrix[count], line[count], numbers = 0, lines = 0, width = widest(layers, count), deepest = 0;
    for (int i = 0; i < count; i++) {
        Layer l = layers[i];
        packed[i] = i || dx ? pack(l.weight, l.inputs, 1, l.outputs, l.inputs) : NULL;
        matrix[i] = numbers;
        line[i] = lines;
        numbers += (size_t)l.outputs * l.inputs;
        lines += 2 * l.outputs;  // bias and scale
        deepest = packed_size(SLICE, l.inputs) > deepest ? packed_size(SLICE, l.inputs) : deepest;
    }
    float *sums = zeros(sizeof(float) * parts * numbers);
    double *columns = zeros(sizeof(double) * parts * lines);
#pragma omp parallel for schedule(static) if (parts > 1)
    for (int part = 0; part < parts; part++) {
        int64_t end = rows * (part + 1) / parts;
        float *slice = claim(deepest + (2 * SLICE + 1) * width), *before = slice + deepest;
        float *after = before + SLICE * width, *slope = after + SLICE * width;
        for (int64_t r = rows * part / parts; r < end; r += SLICE) {
            int here = end - r < SLICE ? end - r : SLICE;
            const float *d = dy + r * layers[count - 1].outputs;
            for (int i = count - 1; i >= 0; i--) {
                Layer l = layers[i];
                size_t O = l.outputs, I = l.inputs;
                double *bias = columns + part * lines + line[i], *scale = bias + O;
                if (l.scale) {
                    memset(slope, 0, sizeof(float) * O);
                    for (int k = 0; k < here; k++)
                        norm_silu_back(d + k * O, l.before + (r + k) * O, l.scale, before + k * O, slope, O);
                    for (size_t j = 0; j < O; j++) scale[j] += slope[j];
                    d = before;
                }
                if (dweight[i])
                    accumulate(d, (i ? layers[i - 1].after : x) + r * I, here, 1, O, I, slice,
                               sums + part * numbers + matrix[i], bias);
                float *down = i ? after : dx ? dx + r * I : NULL;
                if (down) product(d, O, packed[i], down, I, here, O, I, NOTHING);
                d = down;
            }
        }
        free(slice);
    }
    for (int i = 0; i < count; i++) {
        Layer l = layers[i];
        if (dweight[i]) {
            total(dweight[i], sums + matrix[i], (size_t)l.outputs * l.inputs, numbers, parts);
            total_of_doubles(dbias[i], columns + line[i], l.outputs, lines, parts);
        }
        if (l.scale) total_of_doubles(dscale[i], columns + line[i] + l.outputs, l.outputs, lines, parts);
    }
    free_all(packed, count);
    free(sums);
    free(columns);
}
