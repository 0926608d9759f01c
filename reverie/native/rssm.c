// The loops of world/rssm.py over a sequence, with their gradient, and over a dream. One call carries a block of rows
// through the whole loop, so that nothing leaves the cache. [B, T, W] arrays are walked with a row stride of T * W.

#include "layout.h"
#include "shared.h"

// --- The recurrent core ---

typedef struct {
    int deter, hidden, blocks, stoch, classes, batch, steps, block;
    float unimix;
} Sizes;

typedef struct {
    const float *from_deter, *from_deter_bias, *from_deter_scale;  // [h, D]
    const float *from_stoch, *from_stoch_bias, *from_stoch_scale;  // [h, S C]
    const float *recurrent, *mix_deter, *mix_stoch, *mix_scale;    // [G, D/G, D/G], [h, D], [h, D]
    const float *gates, *gates_bias;                               // [G, D/G, 3 D/G]
    const float *inner, *inner_bias, *inner_scale;                 // [h, D]; the posterior's bias is in its offsets
    const float *second, *second_bias, *second_scale;              // [h, h], of the prior alone
    const float *head, *head_bias;                                 // [S C, h]
} Weights;

// The matrices, packed for the way forward or for the way back.
typedef struct {
    float *from_deter, *from_stoch, *recurrent, *mix_deter, *mix_stoch, *gates, *inner, *second, *head;
} Packed;

static int missing(Packed p, int second) {
    int all = p.from_deter && p.from_stoch && p.recurrent && p.mix_deter && p.mix_stoch && p.gates && p.inner && p.head;
    return all && (p.second || !second) ? DONE : OUT_OF_MEMORY;
}

static int pack_forward(Packed *packed, const Weights *w, Sizes s) {
    int D = s.deter, h = s.hidden, SC = s.stoch * s.classes, G = s.blocks, d = D / G;
    float *rows = claim((size_t)SC * h);  // of from_stoch: looked up by class, not multiplied
    for (int j = 0; rows && j < h; j++)
        for (int k = 0; k < SC; k++) rows[(size_t)k * h + j] = w->from_stoch[(size_t)j * SC + k];
    *packed = (Packed){pack(w->from_deter, 1, D, D, h), rows, pack_blocks(w->recurrent, d, 1, G, d, d),
                       pack(w->mix_deter, D, 1, h, D), pack(w->mix_stoch, D, 1, h, D),
                       pack_blocks(w->gates, 3 * d, 1, G, d, 3 * d), pack(w->inner, 1, D, D, h),
                       w->second ? pack(w->second, 1, h, h, h) : NULL, pack(w->head, 1, h, h, SC)};
    return missing(*packed, w->second != NULL);
}

static int pack_backward(Packed *packed, const Weights *w, Sizes s) {
    int D = s.deter, h = s.hidden, SC = s.stoch * s.classes, G = s.blocks, d = D / G;
    *packed = (Packed){pack(w->from_deter, D, 1, h, D), pack(w->from_stoch, SC, 1, h, SC),
                       pack_blocks(w->recurrent, 1, d, G, d, d), pack(w->mix_deter, 1, D, D, h),
                       pack(w->mix_stoch, 1, D, D, h), pack_blocks(w->gates, 1, 3 * d, G, 3 * d, d),
                       pack(w->inner, D, 1, h, D), NULL, pack(w->head, h, 1, SC, h)};
    return missing(*packed, 0);
}

static void release(Packed p) {
    float *all[] = {p.from_deter, p.from_stoch, p.recurrent, p.mix_deter, p.mix_stoch,
                    p.gates,      p.inner,      p.second,    p.head};
    for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) free(all[i]);
}

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
static void core(const Weights *w, Packed p, Sizes s, int rows, const int *index, const float *drive,
                 size_t drive_stride, Trace t, float *out, size_t out_stride) {
    int D = s.deter, h = s.hidden, d = D / s.blocks;
    size_t th = t.stride * h, tD = t.stride * D;
    product(t.deter_in, tD, p.from_deter, t.a1, th, rows, D, h, EVERY_ROW(w->from_deter_bias));
    for (int r = 0; r < rows; r++) {
        float *a2 = t.a2 + r * th;
        norm_silu(t.a1 + r * th, w->from_deter_scale, t.h1 + r * th, h);
        memcpy(a2, w->from_stoch_bias, sizeof(float) * h);
        for (int g = 0; g < s.stoch; g++) {
            int chosen = index[r * s.stoch + g];
            if (chosen < 0) continue;
            const float *row = p.from_stoch + (size_t)chosen * h;
            for (int j = 0; j < h; j++) a2[j] += row[j];
        }
        norm_silu(a2, w->from_stoch_scale, t.h2 + r * th, h);
    }
    product(t.h1, th, p.mix_deter, t.x, tD, rows, h, D, ROWS(drive, drive_stride));
    product(t.h2, th, p.mix_stoch, t.x, tD, rows, h, D, ROWS(t.x, tD));
    block_product(t.deter_in, tD, p.recurrent, t.x, tD, rows, s.blocks, d, d, ROWS(t.x, tD));
    for (int r = 0; r < rows; r++) norm_silu(t.x + r * tD, w->mix_scale, t.m + r * tD, D);
    block_product(t.m, tD, p.gates, t.gate, 3 * tD, rows, s.blocks, d, 3 * d, EVERY_ROW(w->gates_bias));
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

// One-hot samples by inverting the cumulative distribution; one uniform number per group, which is scaled instead of
// the probabilities. power is scratch: [C, S], so that vectors run over groups, however few classes there are.
static void sample(const float *logits, const float *uniform, float *power, float *stoch, int *index, Sizes s) {
    int S = s.stoch, C = s.classes;
    float top[S], sum[S], reached[S];
    for (int g = 0; g < S; g++) {
        for (int c = 0; c < C; c++) power[c * S + g] = logits[g * C + c];
        top[g] = power[g];
        sum[g] = reached[g] = 0;
        index[g] = g * C;
    }
    for (int c = 1; c < C; c++)
        for (int g = 0; g < S; g++) top[g] = power[c * S + g] > top[g] ? power[c * S + g] : top[g];
    for (int c = 0; c < C; c++)
        for (int g = 0; g < S; g++) {
            power[c * S + g] = exponential(power[c * S + g] - top[g]);
            sum[g] += power[c * S + g];
        }
    for (int c = 0; c < C - 1; c++)
        for (int g = 0; g < S; g++) {
            reached[g] += (1.0f - s.unimix) * power[c * S + g] + s.unimix / C * sum[g];
            index[g] += reached[g] <= uniform[g] * sum[g];
        }
    memset(stoch, 0, sizeof(float) * S * C);
    for (int g = 0; g < S; g++) stoch[index[g]] = 1.0f;
}

static int wide(Sizes s) { return s.stoch * s.classes; }

// The whole loop over time of the posterior. keep is 0 where an episode begins, else 1. The buffers of the trace, the
// posterior's hidden layer (p before, q after norm and SiLU) and the outputs are [B, T, ...].
int observe_forward(const Weights *w, Sizes s, const float *deter0, const float *stoch0, const float *keep,
                    const float *drive, const float *offset, const float *uniform, Trace trace, float *p, float *q,
                    float *deter, float *stoch, float *logits) {
    size_t T = s.steps, D = s.deter, h = s.hidden, S = s.stoch, SC = wide(s);
    Packed packed;
    _Atomic int failed = pack_forward(&packed, w, s);
#pragma omp parallel for schedule(static) if (s.batch > s.block)
    for (int begin = 0; begin < s.batch; begin += s.block) {
        int rows = s.batch - begin < s.block ? s.batch - begin : s.block;
        float *probs = failed ? NULL : claim(SC + s.block * S);
        if (!probs) {
            failed = OUT_OF_MEMORY;
            continue;
        }
        int *index = (int *)(probs + SC);
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
            core(w, packed, s, rows, index, drive + at * D, T * D, here, deter + at * D, T * D);
            product(deter + at * D, T * D, packed.inner, p + at * h, T * h, rows, D, h, ROWS(offset + at * h, T * h));
            for (int r = 0; r < rows; r++)
                norm_silu(p + (at + r * T) * h, w->inner_scale, q + (at + r * T) * h, h);
            product(q + at * h, T * h, packed.head, logits + at * SC, T * SC, rows, h, SC, EVERY_ROW(w->head_bias));
            for (int r = 0; r < rows; r++)
                sample(logits + (at + r * T) * SC, uniform + (at + r * T) * S, probs, stoch + (at + r * T) * SC,
                       index + r * S, s);
        }
        free(probs);
    }
    release(packed);
    return failed;
}

// One component of an action: a choice among `size` classes, or `size` bounded normals.
typedef struct {
    int size, discrete;
    float unimix, low, high;  // of a choice; of the deviation of normals
} Part;

// Draws an action from the policy's parameters. noise has one uniform number per choice and one standard normal per
// continuous dimension.
static void act(const Part *parts, int count, const float *policy, const float *noise, float *probs, float *action) {
    for (int i = 0; i < count; i++) {
        Part part = parts[i];
        int size = part.size;
        if (part.discrete) {
            int index;
            sample(policy, noise, probs, action, &index, (Sizes){.stoch = 1, .classes = size, .unimix = part.unimix});
            policy += size;
            noise += 1;
        } else {
            for (int j = 0; j < size; j++) {
                float mean = 2.0f * sigmoid(2.0f * policy[j]) - 1.0f;
                action[j] = mean + ((part.high - part.low) * sigmoid(policy[size + j] + 2.0f) + part.low) * noise[j];
            }
            policy += 2 * size;
            noise += size;
        }
        action += size;
    }
}

static float *take(float **next, size_t numbers) {
    float *taken = *next;
    *next += numbers;
    return taken;
}

static void norm_rows(const float *x, const float *scale, float *y, int rows, int width) {
    for (int r = 0; r < rows; r++) norm_silu(x + r * width, scale, y + r * width, width);
}

// Policy and prior by turns for `steps` steps. points [N, steps + 1, D + S C], deter with stoch beside it, and logits
// [N, steps + 1, S C] hold the start at 0. target [N, G], which the policy sees beside the state, noise [steps, N, Z]
// and latent_noise [steps, N, S] come in, policy [N, steps, P] and action [N, steps, A] go out. Without a policy (depth
// 0) actions come in.
int dream(const Weights *w, Sizes s, const Layer *actor, int depth, const Layer *from_action, const float *mix_action,
          const float *mix_bias, const Part *parts, int part_count, const float *target, int G, const float *noise,
          int Z, const float *latent_noise, float *points, float *logits, float *policy, float *action) {
    size_t T = s.steps, D = s.deter, h = s.hidden, S = s.stoch, SC = wide(s), L = D + SC, F = L + G, n = s.block;
    size_t P = depth ? actor[depth - 1].outputs : 0, A = from_action->inputs, U = widest(actor, depth);
    Packed packed;
    float *packed_actor[depth + 1], *packed_action = pack(from_action->weight, 1, A, A, h);
    float *packed_mix = pack(mix_action, D, 1, h, D);
    _Atomic int failed = pack_forward(&packed, w, s) | pack_layers(actor, depth, packed_actor);
    if (!packed_action || !packed_mix) failed = OUT_OF_MEMORY;
#pragma omp parallel for schedule(static) if (s.batch > s.block)
    for (int begin = 0; begin < s.batch; begin += s.block) {
        int rows = s.batch - begin < s.block ? s.batch - begin : s.block;
        float *memory = failed ? NULL : claim(n * (8 * D + 4 * h + F + 3 * U + P + A + S) + SC + P), *next = memory;
        if (!memory) {
            failed = OUT_OF_MEMORY;
            continue;
        }
        float *drive = take(&next, n * D), *out = take(&next, n * D), *features = take(&next, n * F);
        float *params = take(&next, n * P), *bounded = take(&next, n * A), *hidden = take(&next, n * 3 * U);
        float *a1 = take(&next, n * h), *h1 = take(&next, n * h), *a2 = take(&next, n * h), *h2 = take(&next, n * h);
        float *deter_in = take(&next, n * D), *x = take(&next, n * D), *m = take(&next, n * D);
        Trace here = {deter_in, a1, h1, a2, h2, x, m, take(&next, n * 3 * D), 1};
        float *probs = take(&next, SC + P);
        int *index = (int *)take(&next, n * S);
        Layer layers[depth + 1];
        if (depth) {
            memcpy(layers, actor, depth * sizeof(Layer));
            layers[depth - 1].before = params;
        }
        for (int r = 0; r < rows; r++) {
            classes_of(points + (begin + r) * (T + 1) * L + D, index + r * S, s);
            if (G) memcpy(features + r * F + L, target + (size_t)(begin + r) * G, sizeof(float) * G);  // else NULL
        }
        for (size_t t = 0; t < T; t++) {
            for (int r = 0; r < rows; r++) {
                const float *point = points + ((begin + r) * (T + 1) + t) * L;
                memcpy(deter_in + r * D, point, sizeof(float) * D);
                memcpy(features + r * F, point, sizeof(float) * L);
            }
            if (depth) mlp_rows(layers, depth, packed_actor, features, 0, rows, hidden, U, 0);
            for (int r = 0; r < rows; r++) {
                size_t edge = (begin + r) * T + t;
                float *chosen = action + edge * A;
                if (depth) {
                    act(parts, part_count, params + r * P, noise + (t * s.batch + begin + r) * Z, probs, chosen);
                    memcpy(policy + edge * P, params + r * P, sizeof(float) * P);
                }
                for (size_t j = 0; j < A; j++)
                    bounded[r * A + j] = chosen[j] / (fabsf(chosen[j]) > 1 ? fabsf(chosen[j]) : 1);
            }
            product(bounded, A, packed_action, a1, h, rows, A, h, EVERY_ROW(from_action->bias));
            norm_rows(a1, from_action->scale, h1, rows, h);
            product(h1, h, packed_mix, drive, D, rows, h, D, EVERY_ROW(mix_bias));
            core(w, packed, s, rows, index, drive, D, here, out, D);
            product(out, D, packed.inner, a1, h, rows, D, h, EVERY_ROW(w->inner_bias));
            norm_rows(a1, w->inner_scale, h1, rows, h);
            product(h1, h, packed.second, a2, h, rows, h, h, EVERY_ROW(w->second_bias));
            norm_rows(a2, w->second_scale, h2, rows, h);
            float *to = logits + ((size_t)begin * (T + 1) + t + 1) * SC;
            product(h2, h, packed.head, to, (T + 1) * SC, rows, h, SC, EVERY_ROW(w->head_bias));
            for (int r = 0; r < rows; r++) {
                size_t point = (begin + r) * (T + 1) + t + 1;
                memcpy(points + point * L, out + r * D, sizeof(float) * D);
                sample(logits + point * SC, latent_noise + (t * s.batch + begin + r) * S, probs, points + point * L + D,
                       index + r * S, s);
            }
        }
        free(memory);
    }
    release(packed);
    free_all(packed_actor, depth);
    free(packed_action);
    free(packed_mix);
    return failed;
}

// Gradients that leave the loop, [B, T, ...]; products with the trace make them gradients of matrices. `scales` is
// [blocks of rows, 3 h + D]: the gradients of the four norms, one row per block.
typedef struct {
    float *a1, *a2, *x, *gate, *p, *logits, *scales;
} Gradients;

// In: gradients of the three outputs. In grad.logits: the given gradient of the logits, to which the samples' is added.
// What arrives at the start goes to start_deter [B, D] and start_stoch [B, S C].
int observe_backward(const Weights *w, Sizes s, const float *keep, Trace trace, const float *p, const float *logits,
                     const float *grad_deter, const float *grad_stoch, float *start_deter, float *start_stoch,
                     Gradients grad) {
    size_t T = s.steps, D = s.deter, h = s.hidden, SC = wide(s), d = D / s.blocks;
    Packed packed;
    _Atomic int failed = pack_backward(&packed, w, s);
#pragma omp parallel for schedule(static) if (s.batch > s.block)
    for (int begin = 0; begin < s.batch; begin += s.block) {
        int rows = s.batch - begin < s.block ? s.batch - begin : s.block;
        float *scratch = failed ? NULL : claim(s.block * (3 * D + 2 * SC + h)), *state = scratch;
        if (!scratch) {
            failed = OUT_OF_MEMORY;
            continue;
        }
        float *carry = state + s.block * D, *dm = carry + s.block * D, *probs = dm + s.block * D;
        float *carry_stoch = probs + s.block * SC, *dh = carry_stoch + s.block * SC;
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
            product(grad.logits + at * SC, T * SC, packed.head, dh, h, rows, SC, h, NOTHING);
            for (int r = 0; r < rows; r++) {
                size_t here = at + r * T;
                norm_silu_back(dh + r * h, p + here * h, w->inner_scale, grad.p + here * h, d_inner_scale, h);
                for (size_t j = 0; j < D; j++) state[r * D + j] = grad_deter[here * D + j] + carry[r * D + j];
            }
            product(grad.p + at * h, T * h, packed.inner, state, D, rows, h, D, ROWS(state, D));
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
            block_product(grad.gate + at * 3 * D, T * 3 * D, packed.gates, dm, D, rows, s.blocks, 3 * d, d, NOTHING);
            for (int r = 0; r < rows; r++)
                norm_silu_back(dm + r * D, trace.x + (at + r * T) * D, w->mix_scale, grad.x + (at + r * T) * D,
                               d_mix_scale, D);
            block_product(grad.x + at * D, T * D, packed.recurrent, carry, D, rows, s.blocks, d, d,
                          ROWS(carry, D));
            product(grad.x + at * D, T * D, packed.mix_deter, dh, h, rows, D, h, NOTHING);
            for (int r = 0; r < rows; r++) {
                size_t here = (at + r * T) * h;
                norm_silu_back(dh + r * h, trace.a1 + here, w->from_deter_scale, grad.a1 + here, d_scale1, h);
            }
            product(grad.x + at * D, T * D, packed.mix_stoch, dh, h, rows, D, h, NOTHING);
            for (int r = 0; r < rows; r++) {
                size_t here = (at + r * T) * h;
                norm_silu_back(dh + r * h, trace.a2 + here, w->from_stoch_scale, grad.a2 + here, d_scale2, h);
            }
            product(grad.a1 + at * h, T * h, packed.from_deter, carry, D, rows, h, D, ROWS(carry, D));
            product(grad.a2 + at * h, T * h, packed.from_stoch, carry_stoch, SC, rows, h, SC, NOTHING);
            for (int r = 0; r < rows; r++) {
                float alive = keep[at + r * T];
                for (size_t j = 0; j < D; j++) carry[r * D + j] *= alive;
                for (size_t j = 0; j < SC; j++) carry_stoch[r * SC + j] *= alive;
            }
        }
        memcpy(start_deter + begin * D, carry, sizeof(float) * rows * D);
        memcpy(start_stoch + begin * SC, carry_stoch, sizeof(float) * rows * SC);
        free(scratch);
    }
    release(packed);
    return failed;
}

LAYOUT(Sizes, FIELD(Sizes, deter), FIELD(Sizes, hidden), FIELD(Sizes, blocks), FIELD(Sizes, stoch),
       FIELD(Sizes, classes), FIELD(Sizes, batch), FIELD(Sizes, steps), FIELD(Sizes, block), FIELD(Sizes, unimix));
LAYOUT(Weights, FIELD(Weights, from_deter), FIELD(Weights, from_deter_bias), FIELD(Weights, from_deter_scale),
       FIELD(Weights, from_stoch), FIELD(Weights, from_stoch_bias), FIELD(Weights, from_stoch_scale),
       FIELD(Weights, recurrent), FIELD(Weights, mix_deter), FIELD(Weights, mix_stoch), FIELD(Weights, mix_scale),
       FIELD(Weights, gates), FIELD(Weights, gates_bias), FIELD(Weights, inner), FIELD(Weights, inner_bias),
       FIELD(Weights, inner_scale), FIELD(Weights, second), FIELD(Weights, second_bias), FIELD(Weights, second_scale),
       FIELD(Weights, head), FIELD(Weights, head_bias));
LAYOUT(Trace, FIELD(Trace, deter_in), FIELD(Trace, a1), FIELD(Trace, h1), FIELD(Trace, a2), FIELD(Trace, h2),
       FIELD(Trace, x), FIELD(Trace, m), FIELD(Trace, gate), FIELD(Trace, stride));
LAYOUT(Gradients, FIELD(Gradients, a1), FIELD(Gradients, a2), FIELD(Gradients, x), FIELD(Gradients, gate),
       FIELD(Gradients, p), FIELD(Gradients, logits), FIELD(Gradients, scales));
LAYOUT(Part, FIELD(Part, size), FIELD(Part, discrete), FIELD(Part, unimix), FIELD(Part, low), FIELD(Part, high));

