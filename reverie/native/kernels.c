// The recurrent core of the world model on CPUs, in single precision: the same mathematics as rssm.py and layers.py,
// which are its oracle. One call runs a whole loop over time for a block of rows, so that nothing leaves the cache.
//
// Matrices are packed for the product "rows x matrix": panels of LANES columns, each [inputs][LANES], zero-padded.
// All other arrays are row-major; [B, T, W] arrays are walked with a row stride of T * W.

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16  // columns of a panel: one AVX-512 register, two of AVX2, four of NEON
#define EPS 1e-4f

#ifdef __AVX512F__
#define PANELS 4  // panels that one tile multiplies at once: what the register file holds beside TALL rows
#else
#define PANELS 1
#endif
#define TALL 6

typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float Group __attribute__((vector_size(4 * LANES)));

// --- Products ---

// One tile: `rows` x `panels` panels, with both counts known to the compiler.
static inline __attribute__((always_inline)) void tile(const int rows, const int panels, const float *a, size_t lda,
                                                       const float *packed, float *c, size_t ldc, int inputs,
                                                       int columns, int add) {
    Group sum[TALL][PANELS];
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < panels; p++) sum[r][p] = (Group){0};
    for (int k = 0; k < inputs; k++) {
        Group b[PANELS];
        for (int p = 0; p < panels; p++) b[p] = *(const Lanes *)(packed + ((size_t)p * inputs + k) * LANES);
        for (int r = 0; r < rows; r++)
            for (int p = 0; p < panels; p++) sum[r][p] += a[r * lda + k] * b[p];
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

static inline __attribute__((always_inline)) void strip(const int panels, const float *a, size_t lda,
                                                        const float *packed, float *c, size_t ldc, int rows,
                                                        int inputs, int columns, int add) {
    int r = 0;
    for (; r + TALL <= rows; r += TALL) tile(TALL, panels, a + r * lda, lda, packed, c + r * ldc, ldc, inputs, columns, add);
    for (; r + 2 <= rows; r += 2) tile(2, panels, a + r * lda, lda, packed, c + r * ldc, ldc, inputs, columns, add);
    for (; r < rows; r++) tile(1, panels, a + r * lda, lda, packed, c + r * ldc, ldc, inputs, columns, add);
}

// c[rows, columns] = a[rows, inputs] x packed, or += with `add`.
static void product(const float *a, size_t lda, const float *packed, float *c, size_t ldc, int rows, int inputs,
                    int columns, int add) {
    int panels = (columns + LANES - 1) / LANES, p = 0;
    while (p < panels) {
        const float *part = packed + (size_t)p * inputs * LANES;
        int left = panels - p < PANELS ? panels - p : PANELS, rest = columns - p * LANES;
        float *out = c + p * LANES;
        switch (left) {
#if PANELS == 4
            case 4: strip(4, a, lda, part, out, ldc, rows, inputs, rest, add); break;
            case 3: strip(3, a, lda, part, out, ldc, rows, inputs, rest, add); break;
            case 2: strip(2, a, lda, part, out, ldc, rows, inputs, rest, add); break;
#endif
            default: strip(1, a, lda, part, out, ldc, rows, inputs, rest, add);
        }
        p += left;
    }
}

// The same for a block-diagonal matrix: `blocks` packed matrices of [inputs, columns] one after the other.
static void block_product(const float *a, size_t lda, const float *packed, float *c, size_t ldc, int rows, int blocks,
                          int inputs, int columns, int add) {
    size_t stride = (size_t)((columns + LANES - 1) / LANES) * LANES * inputs;
    for (int g = 0; g < blocks; g++)
        product(a + g * inputs, lda, packed + g * stride, c + g * columns, ldc, rows, inputs, columns, add);
}

// --- RMS norm, then SiLU ---

// e^x to about two units in the last place, in a form that compilers turn into vector code: 2^n times a polynomial.
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float n = rintf(x * 1.44269504f), r = x - n * 0.693147181f;
    float series = 1.0f + r * (1.0f + r * (0.5f + r * (0.166666667f + r * (0.0416666418f +
                   r * (8.33337e-3f + r * 1.3936e-3f)))));
    union { int32_t bits; float value; } power = {((int32_t)n + 127) << 23};
    return series * power.value;
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

static float inverse_root(const float *x, int width) {
    float square = 0;
    for (int j = 0; j < width; j++) square += x[j] * x[j];
    return 1.0f / sqrtf(square / width + EPS);
}

static void norm_silu(const float *x, const float *scale, float *y, int width) {
    float inverse = inverse_root(x, width);
    for (int j = 0; j < width; j++) {
        float z = x[j] * inverse * scale[j];
        y[j] = z * sigmoid(z);
    }
}

// dx from dy; adds to dscale. dx may be dy.
static void norm_silu_back(const float *dy, const float *x, const float *scale, float *dx, float *dscale, int width) {
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

// --- Stacks of layers: linear, then norm and SiLU where there is a scale ---

typedef struct {
    const float *weight, *bias, *scale;  // [outputs, inputs], [outputs], [outputs] or NULL
    float *before, *after;               // [rows, outputs], of norm and SiLU; without a scale there is only before
    int inputs, outputs;
} Layer;

// Packs matrix[i, j] = m[i * row + j * column] of [inputs, columns] into panels.
static float *pack(const float *m, size_t row, size_t column, int inputs, int columns) {
    int panels = (columns + LANES - 1) / LANES;
    float *packed = malloc(sizeof(float) * panels * LANES * inputs), *out = packed;
    for (int p = 0; p < panels; p++)
        for (int k = 0; k < inputs; k++)
            for (int j = p * LANES; j < (p + 1) * LANES; j++) *out++ = j < columns ? m[k * row + j * column] : 0.0f;
    return packed;
}

static void fill(float *c, size_t ldc, const float *bias, int rows, int width) {
    for (int r = 0; r < rows; r++) memcpy(c + r * ldc, bias, sizeof(float) * width);
}

static int widest(const Layer *layers, int count) {
    int width = 0;
    for (int i = 0; i < count; i++) width = layers[i].outputs > width ? layers[i].outputs : width;
    return width;
}

// Some rows through all layers. The last layer's results go to its before and after, those of the others do too if
// `keep`, else to scratch, which holds three times rows x widest.
static void mlp_rows(const Layer *layers, int count, float *const *packed, const float *x, int64_t begin, int rows,
                     float *scratch, size_t width, int keep) {
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

void mlp_forward(const Layer *layers, int count, const float *x, int64_t rows, int block, int keep) {
    float *packed[count];
    for (int i = 0; i < count; i++)
        packed[i] = pack(layers[i].weight, 1, layers[i].inputs, layers[i].inputs, layers[i].outputs);
    size_t width = widest(layers, count);
#pragma omp parallel for schedule(static)
    for (int64_t begin = 0; begin < rows; begin += block) {
        float *scratch = malloc(sizeof(float) * 3 * block * width);
        mlp_rows(layers, count, packed, x + begin * layers[0].inputs, begin,
                 rows - begin < block ? rows - begin : block, scratch, width, keep);
        free(scratch);
    }
    for (int i = 0; i < count; i++) free(packed[i]);
}

// From dy to the gradient of every layer's `before`; a last layer without a scale is given in place. dx may be NULL.
// dscale is [blocks of rows, widths of all scales], zeroed.
void mlp_backward(const Layer *layers, int count, const float *dy, float *const *dbefore, float *dx, float *dscale,
                  int64_t rows, int block) {
    float *packed[count];
    size_t scales = 0, width = widest(layers, count);
    for (int i = 0; i < count; i++) {
        packed[i] = i || dx ? pack(layers[i].weight, layers[i].inputs, 1, layers[i].outputs, layers[i].inputs) : NULL;
        scales += layers[i].scale ? layers[i].outputs : 0;
    }
#pragma omp parallel for schedule(static)
    for (int64_t begin = 0; begin < rows; begin += block) {
        int here = rows - begin < block ? rows - begin : block;
        float *scratch = malloc(sizeof(float) * block * width);
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
            if (down) product(d, l.outputs, packed[i], down, l.inputs, here, l.outputs, l.inputs, 0);
            d = down;
        }
        free(scratch);
    }
    for (int i = 0; i < count; i++) free(packed[i]);
}

// --- The recurrent core ---

typedef struct {
    int deter, hidden, blocks, stoch, classes, batch, steps, block;
    float unimix;
} Sizes;

typedef struct {
    const float *from_deter, *from_deter_bias, *from_deter_scale;  // D -> h
    const float *from_stoch, *from_stoch_bias, *from_stoch_scale;  // rows of [S C, h]: not packed, they are looked up
    const float *recurrent, *mix_deter, *mix_stoch, *mix_scale;    // [G, D/G, D/G], h -> D, h -> D
    const float *gates, *gates_bias;                               // [G, D/G, 3 D/G]
    const float *inner, *inner_bias, *inner_scale;                 // D -> h; the posterior's bias is in its offsets
    const float *second, *second_bias, *second_scale;              // h -> h, of the prior alone
    const float *head, *head_bias;                                 // h -> S C
} Weights;

// What a step leaves behind for the way back; each is one row per row of the block.
typedef struct {
    float *deter_in;             // the state that entered, reset where the episode was new
    float *a1, *h1, *a2, *h2;    // before and after norm and SiLU of the two input layers
    float *x, *m;                // the same of the first block layer
    float *gate;                 // reset, candidate, update, before their sigmoids
    size_t stride;               // of all of them, in multiples of their width
} Trace;

// Class of each group; -1 where the group is zero.
static void classes_of(const float *stoch, int *index, Sizes s) {
    for (int g = 0; g < s.stoch; g++) {
        index[g] = -1;
        for (int c = 0; c < s.classes; c++)
            if (stoch[g * s.classes + c] > 0.5f) index[g] = g * s.classes + c;
    }
}

// deter' of `rows` rows. index is [rows, S]; drive has row stride `drive_stride`.
static void core(const Weights *w, Sizes s, int rows, const int *index, const float *drive, size_t drive_stride,
                 Trace t, float *out, size_t out_stride) {
    int D = s.deter, h = s.hidden, d = D / s.blocks;
    size_t th = t.stride * h, tD = t.stride * D;
    fill(t.a1, th, w->from_deter_bias, rows, h);
    product(t.deter_in, tD, w->from_deter, t.a1, th, rows, D, h, 1);
    for (int r = 0; r < rows; r++) {
        float *a2 = t.a2 + r * th, *x = t.x + r * tD;
        norm_silu(t.a1 + r * th, w->from_deter_scale, t.h1 + r * th, h);
        memcpy(a2, w->from_stoch_bias, sizeof(float) * h);
        for (int g = 0; g < s.stoch; g++) {
            int chosen = index[r * s.stoch + g];
            if (chosen < 0) continue;
            const float *row = w->from_stoch + (size_t)chosen * h;
            for (int j = 0; j < h; j++) a2[j] += row[j];
        }
        norm_silu(a2, w->from_stoch_scale, t.h2 + r * th, h);
        memcpy(x, drive + r * drive_stride, sizeof(float) * D);
    }
    product(t.h1, th, w->mix_deter, t.x, tD, rows, h, D, 1);
    product(t.h2, th, w->mix_stoch, t.x, tD, rows, h, D, 1);
    block_product(t.deter_in, tD, w->recurrent, t.x, tD, rows, s.blocks, d, d, 1);
    for (int r = 0; r < rows; r++) norm_silu(t.x + r * tD, w->mix_scale, t.m + r * tD, D);
    fill(t.gate, 3 * tD, w->gates_bias, rows, 3 * D);
    block_product(t.m, tD, w->gates, t.gate, 3 * tD, rows, s.blocks, d, 3 * d, 1);
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < s.blocks; g++) {
            const float *reset = t.gate + r * 3 * tD + g * 3 * d, *in = t.deter_in + r * tD + g * d;
            float *next = out + r * out_stride + g * d;
            for (int j = 0; j < d; j++) {
                float candidate = 2.0f * sigmoid(2.0f * sigmoid(reset[j]) * reset[d + j]) - 1.0f;
                next[j] = in[j] + sigmoid(reset[2 * d + j] - 1.0f) * (candidate - in[j]);
            }
        }
}

// Softmax of every group, without the uniform share.
static void softmax(const float *logits, float *probs, Sizes s) {
    for (int g = 0; g < s.stoch; g++) {
        const float *l = logits + g * s.classes;
        float top = l[0];
        for (int c = 1; c < s.classes; c++) top = l[c] > top ? l[c] : top;
        for (int c = 0; c < s.classes; c++) probs[g * s.classes + c] = l[c] - top;
    }
    for (int j = 0; j < s.stoch * s.classes; j++) probs[j] = exponential(probs[j]);
    for (int g = 0; g < s.stoch; g++) {
        float *p = probs + g * s.classes, sum = 0;
        for (int c = 0; c < s.classes; c++) sum += p[c];
        for (int c = 0; c < s.classes; c++) p[c] /= sum;
    }
}

// One-hot samples by inverting the cumulative distribution; one uniform number per group. probs is scratch.
static void sample(const float *logits, const float *uniform, float *probs, float *stoch, int *index, Sizes s) {
    softmax(logits, probs, s);
    memset(stoch, 0, sizeof(float) * s.stoch * s.classes);
    for (int g = 0; g < s.stoch; g++) {
        float *p = probs + g * s.classes, total = 0, reached = 0;
        int chosen = 0;
        for (int c = 0; c < s.classes; c++) {
            p[c] = (1.0f - s.unimix) * p[c] + s.unimix / s.classes;
            total += p[c];
        }
        for (int c = 0; c < s.classes - 1; c++) {
            reached += p[c];
            chosen += reached <= uniform[g] * total;
        }
        index[g] = g * s.classes + chosen;
        stoch[index[g]] = 1.0f;
    }
}

static int wide(Sizes s) { return s.stoch * s.classes; }

// The whole loop over time of the posterior. keep is 0 where an episode begins, else 1. The buffers of the trace, the
// posterior's hidden layer (p before, q after norm and SiLU) and the outputs are [B, T, ...].
void observe_forward(const Weights *w, Sizes s, const float *deter0, const float *stoch0, const float *keep,
                     const float *drive, const float *offset, const float *uniform, Trace trace, float *p, float *q,
                     float *deter, float *stoch, float *logits) {
    size_t T = s.steps, D = s.deter, h = s.hidden, S = s.stoch, SC = wide(s);
#pragma omp parallel for schedule(static)
    for (int begin = 0; begin < s.batch; begin += s.block) {
        int rows = s.batch - begin < s.block ? s.batch - begin : s.block;
        int *index = malloc(sizeof(int) * s.block * S);
        float *probs = malloc(sizeof(float) * SC);
        for (int r = 0; r < rows; r++) classes_of(stoch0 + (begin + r) * SC, index + r * S, s);
        for (size_t t = 0; t < T; t++) {
            size_t at = begin * T + t;
            Trace here = {trace.deter_in + at * D, trace.a1 + at * h, trace.h1 + at * h, trace.a2 + at * h,
                          trace.h2 + at * h, trace.x + at * D, trace.m + at * D, trace.gate + at * 3 * D, T};
            for (int r = 0; r < rows; r++) {
                float alive = keep[at + r * T];
                const float *before = t ? deter + (at + r * T - 1) * D : deter0 + (begin + r) * D;
                for (size_t j = 0; j < D; j++) here.deter_in[r * T * D + j] = alive * before[j];
                if (alive == 0.0f)
                    for (size_t g = 0; g < S; g++) index[r * S + g] = -1;
            }
            core(w, s, rows, index, drive + at * D, T * D, here, deter + at * D, T * D);
            for (int r = 0; r < rows; r++) memcpy(p + (at + r * T) * h, offset + (at + r * T) * h, sizeof(float) * h);
            product(deter + at * D, T * D, w->inner, p + at * h, T * h, rows, D, h, 1);
            for (int r = 0; r < rows; r++)
                norm_silu(p + (at + r * T) * h, w->inner_scale, q + (at + r * T) * h, h);
            fill(logits + at * SC, T * SC, w->head_bias, rows, SC);
            product(q + at * h, T * h, w->head, logits + at * SC, T * SC, rows, h, SC, 1);
            for (int r = 0; r < rows; r++)
                sample(logits + (at + r * T) * SC, uniform + (at + r * T) * S, probs, stoch + (at + r * T) * SC,
                       index + r * S, s);
        }
        free(index);
        free(probs);
    }
}

// One component of an action: a choice among `size` classes, or `size` bounded normals.
typedef struct {
    int size, discrete;
} Part;

// Draws an action from the policy's parameters. noise has one uniform number per choice and one standard normal per
// continuous dimension.
static void act(const Part *parts, int count, float unimix, float low, float high, const float *policy,
                const float *noise, float *probs, float *action) {
    for (int i = 0; i < count; i++) {
        int size = parts[i].size;
        if (parts[i].discrete) {
            int index;
            sample(policy, noise, probs, action, &index, (Sizes){.stoch = 1, .classes = size, .unimix = unimix});
            policy += size;
            noise += 1;
        } else {
            for (int j = 0; j < size; j++) {
                float mean = 2.0f * sigmoid(2.0f * policy[j]) - 1.0f;
                action[j] = mean + ((high - low) * sigmoid(policy[size + j] + 2.0f) + low) * noise[j];
            }
            policy += 2 * size;
            noise += size;
        }
        action += size;
    }
}

// Policy and prior by turns for `steps` steps. deter, stoch and logits are [N, steps + 1, ...] and hold the start at
// 0; noise [steps, N, Z] and chance [steps, N, S] come in, policy [N, steps, P] and action [N, steps, A] go out.
void dream(const Weights *w, Sizes s, const Layer *actor, int actor_layers, const Layer *from_action,
           const float *mix_action, const float *mix_bias, const Part *parts, int part_count, float unimix, float low,
           float high, const float *noise, int Z, const float *chance, float *deter, float *stoch, float *logits,
           float *policy, float *action) {
    size_t T = s.steps, D = s.deter, h = s.hidden, S = s.stoch, SC = wide(s), F = D + SC;
    size_t P = actor[actor_layers - 1].outputs, A = from_action->inputs, U = widest(actor, actor_layers);
    size_t sizes[] = {D, D, D, 3 * D, D, h, h, h, h, F, 3 * U, P, A, SC > P ? SC : P, D}, total = 0;
    float *packed[actor_layers], *packed_action = pack(from_action->weight, 1, A, A, h);
    for (int i = 0; i < actor_layers; i++)
        packed[i] = pack(actor[i].weight, 1, actor[i].inputs, actor[i].inputs, actor[i].outputs);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) total += sizes[i] * s.block;
#pragma omp parallel for schedule(static)
    for (int begin = 0; begin < s.batch; begin += s.block) {
        int rows = s.batch - begin < s.block ? s.batch - begin : s.block;
        int *index = malloc(sizeof(int) * s.block * S);
        float *scratch = malloc(sizeof(float) * total), *at[sizeof(sizes) / sizeof(*sizes)], *next = scratch;
        for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); next += sizes[i++] * s.block) at[i] = next;
        float *drive = at[4], *a1 = at[5], *h1 = at[6], *a2 = at[7], *h2 = at[8], *features = at[9];
        float *params = at[11], *bounded = at[12], *probs = at[13], *out = at[14];
        Trace here = {at[0], a1, h1, a2, h2, at[1], at[2], at[3], 1};
        Layer layers[actor_layers];
        memcpy(layers, actor, sizeof(layers));
        layers[actor_layers - 1].before = params;
        for (int r = 0; r < rows; r++) classes_of(stoch + (begin + r) * (T + 1) * SC, index + r * S, s);
        for (size_t t = 0; t < T; t++) {
            for (int r = 0; r < rows; r++) {
                size_t point = (begin + r) * (T + 1) + t;
                memcpy(here.deter_in + r * D, deter + point * D, sizeof(float) * D);
                memcpy(features + r * F, deter + point * D, sizeof(float) * D);
                memcpy(features + r * F + D, stoch + point * SC, sizeof(float) * SC);
            }
            mlp_rows(layers, actor_layers, packed, features, 0, rows, at[10], U, 0);
            for (int r = 0; r < rows; r++) {
                size_t edge = (begin + r) * T + t;
                float *chosen = action + edge * A;
                act(parts, part_count, unimix, low, high, params + r * P, noise + (t * s.batch + begin + r) * Z, probs,
                    chosen);
                memcpy(policy + edge * P, params + r * P, sizeof(float) * P);
                for (size_t j = 0; j < A; j++) bounded[r * A + j] = chosen[j] / (fabsf(chosen[j]) > 1 ? fabsf(chosen[j]) : 1);
            }
            fill(a1, h, from_action->bias, rows, h);
            product(bounded, A, packed_action, a1, h, rows, A, h, 1);
            for (int r = 0; r < rows; r++) norm_silu(a1 + r * h, from_action->scale, h1 + r * h, h);
            fill(drive, D, mix_bias, rows, D);
            product(h1, h, mix_action, drive, D, rows, h, D, 1);
            core(w, s, rows, index, drive, D, here, out, D);
            fill(a1, h, w->inner_bias, rows, h);
            product(out, D, w->inner, a1, h, rows, D, h, 1);
            for (int r = 0; r < rows; r++) norm_silu(a1 + r * h, w->inner_scale, h1 + r * h, h);
            fill(a2, h, w->second_bias, rows, h);
            product(h1, h, w->second, a2, h, rows, h, h, 1);
            for (int r = 0; r < rows; r++) norm_silu(a2 + r * h, w->second_scale, h2 + r * h, h);
            float *to = logits + ((size_t)begin * (T + 1) + t + 1) * SC;
            fill(to, (T + 1) * SC, w->head_bias, rows, SC);
            product(h2, h, w->head, to, (T + 1) * SC, rows, h, SC, 1);
            for (int r = 0; r < rows; r++) {
                size_t point = (begin + r) * (T + 1) + t + 1;
                memcpy(deter + point * D, out + r * D, sizeof(float) * D);
                sample(logits + point * SC, chance + (t * s.batch + begin + r) * S, probs, stoch + point * SC,
                       index + r * S, s);
            }
        }
        free(index);
        free(scratch);
    }
    for (int i = 0; i < actor_layers; i++) free(packed[i]);
    free(packed_action);
}

// The matrices of the way back: the same ones, packed for the product with their transpose.
typedef struct {
    const float *from_deter, *from_stoch;         // h -> D, h -> S C
    const float *recurrent, *mix_deter, *mix_stoch;  // [G, D/G, D/G], D -> h, D -> h
    const float *gates;                           // [G, 3 D/G, D/G]
    const float *inner, *head;                    // h -> D, S C -> h
} Transposed;

// Gradients that leave the loop, [B, T, ...]; products with the trace make them gradients of matrices. `scales` is
// [blocks of rows, 3 h + D]: the gradients of the four norms, one row per block.
typedef struct {
    float *a1, *a2, *x, *gate, *p, *logits, *scales;
} Gradients;

// In: gradients of the three outputs. In grad.logits: the given gradient of the logits, to which the samples' is added.
void observe_backward(const Weights *w, const Transposed *wt, Sizes s, const float *keep, Trace trace, const float *p,
                      const float *logits, const float *grad_deter, const float *grad_stoch, Gradients grad) {
    size_t T = s.steps, D = s.deter, h = s.hidden, SC = wide(s), d = D / s.blocks;
#pragma omp parallel for schedule(static)
    for (int begin = 0; begin < s.batch; begin += s.block) {
        int rows = s.batch - begin < s.block ? s.batch - begin : s.block;
        float *scratch = malloc(sizeof(float) * s.block * (3 * D + 2 * SC + h)), *state = scratch;
        float *carry = state + s.block * D, *dm = carry + s.block * D, *probs = dm + s.block * D;
        float *carry_stoch = probs + s.block * SC, *dq = carry_stoch + s.block * SC;
        float *d_scale1 = grad.scales + (size_t)(begin / s.block) * (3 * h + D), *d_scale2 = d_scale1 + h;
        float *d_inner_scale = d_scale2 + h, *d_mix_scale = d_inner_scale + h;
        memset(carry, 0, sizeof(float) * s.block * D);
        memset(carry_stoch, 0, sizeof(float) * s.block * SC);
        for (size_t t = T; t-- > 0;) {
            size_t at = begin * T + t;
            for (int r = 0; r < rows; r++) {  // through the straight-through samples into the logits
                size_t here = at + r * T;
                const float *given = grad_stoch + here * SC, *carried = carry_stoch + r * SC;
                float *out = grad.logits + here * SC;
                softmax(logits + here * SC, probs, s);
                for (int g = 0; g < s.stoch; g++) {
                    float along = 0;
                    for (int c = 0; c < s.classes; c++) {
                        int j = g * s.classes + c;
                        along += probs[j] * (given[j] + carried[j]);
                    }
                    for (int c = 0; c < s.classes; c++) {
                        int j = g * s.classes + c;
                        out[j] += (1.0f - s.unimix) * probs[j] * (given[j] + carried[j] - along);
                    }
                }
            }
            product(grad.logits + at * SC, T * SC, wt->head, dq, h, rows, SC, h, 0);
            for (int r = 0; r < rows; r++) {
                size_t here = at + r * T;
                norm_silu_back(dq + r * h, p + here * h, w->inner_scale, grad.p + here * h, d_inner_scale, h);
                for (size_t j = 0; j < D; j++) state[r * D + j] = grad_deter[here * D + j] + carry[r * D + j];
            }
            product(grad.p + at * h, T * h, wt->inner, state, D, rows, h, D, 1);
            for (int r = 0; r < rows; r++)  // through the gates
                for (int g = 0; g < s.blocks; g++) {
                    size_t here = at + r * T;
                    const float *reset = trace.gate + here * 3 * D + g * 3 * d, *in = trace.deter_in + here * D + g * d;
                    float *out = grad.gate + here * 3 * D + g * 3 * d, *next = carry + r * D + g * d;
                    const float *dd = state + r * D + g * d;
                    for (size_t j = 0; j < d; j++) {
                        float open = sigmoid(reset[j]), raw = reset[d + j], u = sigmoid(reset[2 * d + j] - 1.0f);
                        float candidate = 2.0f * sigmoid(2.0f * open * raw) - 1.0f;
                        float inside = dd[j] * u * (1.0f - candidate * candidate);
                        out[j] = inside * raw * open * (1.0f - open);
                        out[d + j] = inside * open;
                        out[2 * d + j] = dd[j] * (candidate - in[j]) * u * (1.0f - u);
                        next[j] = dd[j] * (1.0f - u);
                    }
                }
            block_product(grad.gate + at * 3 * D, T * 3 * D, wt->gates, dm, D, rows, s.blocks, 3 * d, d, 0);
            for (int r = 0; r < rows; r++)
                norm_silu_back(dm + r * D, trace.x + (at + r * T) * D, w->mix_scale, grad.x + (at + r * T) * D,
                               d_mix_scale, D);
            block_product(grad.x + at * D, T * D, wt->recurrent, carry, D, rows, s.blocks, d, d, 1);
            product(grad.x + at * D, T * D, wt->mix_deter, grad.a1 + at * h, T * h, rows, D, h, 0);
            product(grad.x + at * D, T * D, wt->mix_stoch, grad.a2 + at * h, T * h, rows, D, h, 0);
            for (int r = 0; r < rows; r++) {
                size_t here = (at + r * T) * h;
                norm_silu_back(grad.a1 + here, trace.a1 + here, w->from_deter_scale, grad.a1 + here, d_scale1, h);
                norm_silu_back(grad.a2 + here, trace.a2 + here, w->from_stoch_scale, grad.a2 + here, d_scale2, h);
            }
            product(grad.a1 + at * h, T * h, wt->from_deter, carry, D, rows, h, D, 1);
            product(grad.a2 + at * h, T * h, wt->from_stoch, carry_stoch, SC, rows, h, SC, 0);
            for (int r = 0; r < rows; r++) {
                float alive = keep[at + r * T];
                for (size_t j = 0; j < D; j++) carry[r * D + j] *= alive;
                for (size_t j = 0; j < SC; j++) carry_stoch[r * SC + j] *= alive;
            }
        }
        free(scratch);
    }
}

// --- One step of LaProp (kind 0) or Adam (kind 1) over a group of parameters in one buffer ---

// Scales each tensor's gradient to at most `limit` times the norm of its weights.
void clip_adaptively(const float *weight, float *gradient, const int64_t *sizes, int count, float limit, float floor) {
    for (int i = 0; i < count; weight += sizes[i], gradient += sizes[i], i++) {
        float weights = 0, gradients = 0;
        for (int64_t j = 0; j < sizes[i]; j++) {
            weights += weight[j] * weight[j];
            gradients += gradient[j] * gradient[j];
        }
        float allowed = limit * (sqrtf(weights) > floor ? sqrtf(weights) : floor), ratio = sqrtf(gradients) / allowed;
        if (ratio > 1)
            for (int64_t j = 0; j < sizes[i]; j++) gradient[j] /= ratio;
    }
}

// correction1 and correction2 are 1 - beta^count.
void descend(int kind, float *weight, const float *gradient, float *step, float *square, int64_t size, float rate,
             float beta1, float beta2, float eps, float correction1, float correction2) {
#pragma omp parallel for simd schedule(static) if (size > 65536)
    for (int64_t j = 0; j < size; j++) {
        float g = gradient[j];
        square[j] = beta2 * square[j] + (1 - beta2) * g * g;
        float root = sqrtf(square[j] / correction2) + eps;
        step[j] = beta1 * step[j] + (1 - beta1) * (kind ? g : g / root);
        weight[j] -= rate * step[j] / correction1 / (kind ? root : 1);
    }
}

int lanes(void) { return LANES; }
