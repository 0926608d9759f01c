// The layers of nets/layers.py: RMS norm with SiLU, and stacks of linear layers.

#include "layout.h"
#include "shared.h"

// Rows that the gradient of a matrix takes together. With a power of two, panels would compete for the same places in
// the cache.
#define SLICE 152

int norm_silu_forward(const float *x, const float *scale, float *y, int64_t rows, int width) {
#pragma omp parallel for schedule(static) if (rows * width > 16384)
    for (int64_t r = 0; r < rows; r++) norm_silu(x + r * width, scale, y + r * width, width);
    return DONE;
}

// dscale is [parts, width], zeroed: one row per part of the rows, summed by the caller.
int norm_silu_backward(const float *dy, const float *x, const float *scale, float *dx, float *dscale, int64_t rows,
                       int width, int parts) {
#pragma omp parallel for schedule(static) if (rows * width > 16384)
    for (int part = 0; part < parts; part++)
        for (int64_t r = rows * part / parts; r < rows * (part + 1) / parts; r++)
            norm_silu_back(dy + r * width, x + r * width, scale, dx + r * width, dscale + (size_t)part * width, width);
    return DONE;
}

// Adds what at most SLICE rows make of the gradients of a matrix, d^T x, and of its bias, the sum of each column of d.
// `packed` is scratch.
static void accumulate(const float *d, const float *x, int rows, int outputs, int inputs, float *packed, float *matrix,
                       double *bias) {
    pack_into(packed, x, inputs, 1, rows, inputs);
    multiply(d, 1, outputs, packed, matrix, inputs, outputs, rows, inputs, ROWS(matrix, inputs));
    for (int r = 0; r < rows; r++)  // a long sum in single precision would lose digits
        for (int j = 0; j < outputs; j++) bias[j] += d[(size_t)r * outputs + j];
}

static float *zeros(size_t numbers) {
    float *memory = claim(numbers);
    return memory ? memset(memory, 0, sizeof(float) * numbers) : NULL;
}

// The sums of all parts, each `stride` after the one before.
static void total(float *into, const float *sums, size_t size, size_t stride, int parts) {
#pragma omp parallel for schedule(static) if (parts > 1 && size > 16384)
    for (size_t i = 0; i < size; i++) {
        float sum = 0;
        for (int part = 0; part < parts; part++) sum += sums[part * stride + i];
        into[i] = sum;
    }
}

int mlp_forward(const Layer *layers, int count, const float *x, int64_t rows, int block, int keep) {
    float *packed[count];
    _Atomic int failed = pack_layers(layers, count, packed);
    size_t width = widest(layers, count);
#pragma omp parallel for schedule(static) if (rows > block)
    for (int64_t begin = 0; begin < rows; begin += block) {
        float *scratch = failed ? NULL : claim(3 * block * width);
        if (!scratch) {
            failed = OUT_OF_MEMORY;
            continue;
        }
        mlp_rows(layers, count, packed, x + begin * layers[0].inputs, begin,
                 rows - begin < block ? rows - begin : block, scratch, width, keep);
        free(scratch);
    }
    free_all(packed, count);
    return failed;
}

// The gradients of x (unless dx is NULL), of matrices and biases (unless a layer's places are NULL) and of scales.
int mlp_backward(const Layer *layers, int count, const float *x, const float *dy, float *dx, float *const *dweight,
                 float *const *dbias, float *const *dscale, int64_t rows, int parts) {
    float *packed[count];
    size_t matrix[count], bias[count], numbers = 0, columns = 0, width = widest(layers, count), slice = 0;
    _Atomic int failed = DONE;
    for (int i = 0; i < count; i++) {
        Layer l = layers[i];
        packed[i] = i || dx ? pack(l.weight, l.inputs, 1, l.outputs, l.inputs) : NULL;
        if ((i || dx) && !packed[i]) failed = OUT_OF_MEMORY;
        matrix[i] = numbers;
        bias[i] = columns;
        numbers += (size_t)l.outputs * l.inputs;
        columns += 2 * l.outputs;  // the scale follows
        slice = packed_size(SLICE, l.inputs) > slice ? packed_size(SLICE, l.inputs) : slice;
    }
    size_t stride = numbers + columns;
    float *sums = failed ? NULL : zeros(parts * stride);
    if (!sums) failed = OUT_OF_MEMORY;
#pragma omp parallel for schedule(static) if (parts > 1)
    for (int part = 0; part < parts; part++) {
        int64_t end = rows * (part + 1) / parts;
        size_t floats = slice + (2 * SLICE + 2) * width;  // an even number: doubles follow
        float *scratch = failed ? NULL : claim(floats + 2 * columns);
        if (!scratch) {
            failed = OUT_OF_MEMORY;
            continue;
        }
        float *inside = scratch + slice, *below = inside + SLICE * width, *slope = below + SLICE * width;
        float *sum = sums + part * stride;
        double *narrow = memset(scratch + floats, 0, sizeof(double) * columns);
        for (int64_t r = rows * part / parts; r < end; r += SLICE) {
            int here = end - r < SLICE ? end - r : SLICE;
            const float *d = dy + r * layers[count - 1].outputs;
            for (int i = count - 1; i >= 0; i--) {
                Layer l = layers[i];
                size_t O = l.outputs, I = l.inputs;
                if (l.scale) {
                    memset(slope, 0, sizeof(float) * O);
                    for (int k = 0; k < here; k++)
                        norm_silu_back(d + k * O, l.before + (r + k) * O, l.scale, inside + k * O, slope, O);
                    for (size_t j = 0; j < O; j++) narrow[bias[i] + O + j] += slope[j];
                    d = inside;
                }
                if (dweight[i])
                    accumulate(d, (i ? layers[i - 1].after : x) + r * I, here, O, I, scratch, sum + matrix[i],
                               narrow + bias[i]);
                float *down = i ? below : dx ? dx + r * I : NULL;
                if (down) product(d, O, packed[i], down, I, here, O, I, NOTHING);
                d = down;
            }
        }
        for (size_t j = 0; j < columns; j++) sum[numbers + j] = narrow[j];
        free(scratch);
    }
    for (int i = 0; !failed && i < count; i++) {
        Layer l = layers[i];
        const float *found = sums + numbers + bias[i];
        if (dweight[i]) total(dweight[i], sums + matrix[i], (size_t)l.outputs * l.inputs, stride, parts);
        if (dbias[i]) total(dbias[i], found, l.outputs, stride, parts);
        if (l.scale) total(dscale[i], found + l.outputs, l.outputs, stride, parts);
    }
    free_all(packed, count);
    free(sums);
    return failed;
}

LAYOUT(Layer, FIELD(Layer, weight), FIELD(Layer, bias), FIELD(Layer, scale), FIELD(Layer, before), FIELD(Layer, after),
       FIELD(Layer, inputs), FIELD(Layer, outputs));
