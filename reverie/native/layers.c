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

// The gradients of a matrix and its bias: into[blocks, outputs, inputs] = d^T x for each block of both, and of each
// column of d the sum (unless `bias` is NULL). Every part of the rows has sums of its own, and goes through its rows in
// slices that stay in the cache.
void matrix_gradient(const float *d, const float *x, float *into, float *bias, int64_t rows, int blocks, int outputs,
                     int inputs, int parts) {
    size_t ldd = (size_t)blocks * outputs, ldx = (size_t)blocks * inputs, size = ldd * inputs, biases = bias ? ldd : 0;
    float *sums = claim(parts * (size + biases));
#pragma omp parallel for schedule(static) if (parts > 1)
    for (int part = 0; part < parts; part++) {
        int64_t first = rows * part / parts, end = rows * (part + 1) / parts;
        float *packed = claim(packed_size(SLICE, inputs) + 2 * biases), *sum = sums + part * (size + biases);
        double *column = (double *)(packed + packed_size(SLICE, inputs));  // a long sum in single precision loses digits
        for (size_t j = 0; j < biases; j++) column[j] = 0;
        for (int64_t r = first; r < end; r += SLICE) {
            int here = end - r < SLICE ? end - r : SLICE;
            for (int g = 0; g < blocks; g++) {
                pack_into(packed, x + r * ldx + g * inputs, ldx, 1, here, inputs);
                float *block = sum + (size_t)g * outputs * inputs;
                multiply(d + r * ldd + g * outputs, 1, ldd, packed, block, inputs, outputs, here, inputs,
                         r > first ? ROWS(block, inputs) : NOTHING);
            }
            for (int64_t k = r; k < r + here; k++)
                for (size_t j = 0; j < biases; j++) column[j] += d[k * ldd + j];
        }
        for (size_t j = 0; j < biases; j++) sum[size + j] = column[j];
        free(packed);
    }
#pragma omp parallel for schedule(static) if (parts > 1 && size > 16384)
    for (size_t i = 0; i < size + biases; i++) {
        float sum = 0;
        for (int part = 0; part < parts; part++) sum += sums[part * (size + biases) + i];
        *(i < size ? into + i : bias + i - size) = sum;
    }
    free(sums);
}

void mlp_forward(const Layer *layers, int count, const float *x, int64_t rows, int block, int keep) {
    float *packed[count];
    for (int i = 0; i < count; i++)
        packed[i] = pack(layers[i].weight, 1, layers[i].inputs, layers[i].inputs, layers[i].outputs);
    size_t width = widest(layers, count);
#pragma omp parallel for schedule(static) if (rows > block)
    for (int64_t begin = 0; begin < rows; begin += block) {
        float *scratch = claim(3 * block * width);
        mlp_rows(layers, count, packed, x + begin * layers[0].inputs, begin,
                 rows - begin < block ? rows - begin : block, scratch, width, keep);
        free(scratch);
    }
    for (int i = 0; i < count; i++) free(packed[i]);
}

// From dy to the gradients of x, of every layer's `before` (a last layer without a scale is given in place), and of
// matrices and biases. dx may be NULL, and so may the places of a layer's matrix and bias. dscale is [blocks of rows,
// widths of all scales], zeroed. `parts` is how many sums over rows are made side by side.
void mlp_backward(const Layer *layers, int count, const float *x, const float *dy, float *const *dbefore, float *dx,
                  float *const *dweight, float *const *dbias, float *dscale, int64_t rows, int block, int parts) {
    float *packed[count];
    size_t scales = 0, width = widest(layers, count);
    for (int i = 0; i < count; i++) {
        packed[i] = i || dx ? pack(layers[i].weight, layers[i].inputs, 1, layers[i].outputs, layers[i].inputs) : NULL;
        scales += layers[i].scale ? layers[i].outputs : 0;
    }
#pragma omp parallel for schedule(static) if (rows > block)
    for (int64_t begin = 0; begin < rows; begin += block) {
        int here = rows - begin < block ? rows - begin : block;
        float *scratch = claim(block * width);
        float *d_scale = dscale + begin / block * scales + scales;
        const float *d = dy + begin * layers[count - 1].outputs;
        for (int i = count - 1; i >= 0; i--) {
            Layer l = layers[i];
            if (l.scale) {
                const float *before = l.before + begin * l.outputs;
                float *out = dbefore[i] + begin * l.outputs;
                d_scale -= l.outputs;
                for (int r = 0; r < here; r++)
                    norm_silu_back(d + r * l.outputs, before + r * l.outputs, l.scale, out + r * l.outputs, d_scale,
                                   l.outputs);
                d = out;
            }
            float *down = i ? scratch : dx ? dx + begin * l.inputs : NULL;
            if (down) product(d, l.outputs, packed[i], down, l.inputs, here, l.outputs, l.inputs, NOTHING);
            d = down;
        }
        free(scratch);
    }
    for (int i = 0; i < count; i++) free(packed[i]);
    for (int i = 0; i < count; i++)
        if (dweight[i])
            matrix_gradient(dbefore[i], i ? layers[i - 1].after : x, dweight[i], dbias[i], rows, 1, layers[i].outputs,
                            layers[i].inputs, parts);
}
