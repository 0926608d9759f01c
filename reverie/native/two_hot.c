// Heads that predict a distribution over bins: its mean, with the layers before it, and its cross-entropy.

#include "shared.h"

// In lanes, because compilers may not regroup comparisons of numbers that could be NaN.
static inline float largest_of(const float *x, int width) {
    float lanes[LANES], largest = x[0];
    int k = 0;
    for (int j = 0; j < LANES; j++) lanes[j] = x[0];
    for (; k + LANES <= width; k += LANES)
        for (int j = 0; j < LANES; j++) lanes[j] = x[k + j] > lanes[j] ? x[k + j] : lanes[j];
    for (; k < width; k++) largest = x[k] > largest ? x[k] : largest;
    for (int j = 0; j < LANES; j++) largest = lanes[j] > largest ? lanes[j] : largest;
    return largest;
}

static inline float expected(const float *logits, const float *bins, int width) {
    float largest = largest_of(logits, width), sum = 0, total = 0, power[width];
    for (int k = 0; k < width; k++) {
        power[k] = exponential(logits[k] - largest);
        sum += power[k];
    }
    for (int k = 0; k < width / 2; k++) total += (power[width - 1 - k] - power[k]) * -bins[k];
    return total / sum;
}

// The expected bin of every group of logits that a stack of layers ends with, or without layers, of x: mean is [rows,
// groups]. Logits stay in the cache.
int two_hot_mean(const Layer *layers, int count, const float *x, int inputs, const float *bins, int width, float *mean,
                 int64_t rows, int block) {
    int outputs = count ? layers[count - 1].outputs : inputs, groups = outputs / width;
    size_t widest_layer = widest(layers, count);
    float *packed[count + 1];
    _Atomic int failed = pack_layers(layers, count, packed);
#pragma omp parallel for schedule(static) if (rows > block)
    for (int64_t begin = 0; begin < rows; begin += block) {
        int here = rows - begin < block ? rows - begin : block;
        float *scratch = failed ? NULL : claim(block * (outputs + 3 * widest_layer));
        if (!scratch) {
            failed = OUT_OF_MEMORY;
            continue;
        }
        const float *logits = x + begin * inputs;
        if (count) {
            Layer own[count];
            memcpy(own, layers, sizeof(own));
            own[count - 1].before = scratch;
            mlp_rows(own, count, packed, logits, 0, here, scratch + block * outputs, widest_layer, 0);
            logits = scratch;
        }
        for (int i = 0; i < here * groups; i++) mean[begin * groups + i] = expected(logits + i * width, bins, width);
        free(scratch);
    }
    free_all(packed, count);
    return failed;
}

// The bin at or below a target, and the share of the one above.
static inline int place(float target, const float *bins, int width, float *share) {
    int below = 0, above = width - 1;
    while (above - below > 1) {
        int middle = (below + above) / 2;
        if (bins[middle] <= target) below = middle;
        else above = middle;
    }
    float s = (target - bins[below]) / (bins[below + 1] - bins[below]);
    *share = s < 0 ? 0 : s > 1 ? 1 : s;
    return below;
}

// loss[r] = sum_i weights[i] (normaliser[r] - the logit around targets[i, r]), normaliser = logsumexp(logits).
int two_hot_loss(const float *logits, const float *targets, const float *weights, int count, const float *bins,
                 float *loss, float *normaliser, int64_t rows, int width) {
#pragma omp parallel for schedule(static) if (rows * width > 16384)
    for (int64_t r = 0; r < rows; r++) {
        const float *x = logits + r * width;
        float largest = largest_of(x, width), sum = 0, total = 0, share;
        for (int k = 0; k < width; k++) sum += exponential(x[k] - largest);
        normaliser[r] = largest + logf(sum);
        for (int i = 0; i < count; i++) {
            int below = place(targets[i * rows + r], bins, width, &share);
            total += weights[i] * (normaliser[r] - x[below] - share * (x[below + 1] - x[below]));
        }
        loss[r] = total;
    }
    return DONE;
}

int two_hot_loss_back(const float *dloss, const float *logits, const float *targets, const float *weights, int count,
                      const float *bins, const float *normaliser, float *dlogits, int64_t rows, int width) {
    float weight = 0;
    for (int i = 0; i < count; i++) weight += weights[i];
#pragma omp parallel for schedule(static) if (rows * width > 16384)
    for (int64_t r = 0; r < rows; r++) {
        const float *x = logits + r * width;
        float *dx = dlogits + r * width, scale = weight * dloss[r], share;
        for (int k = 0; k < width; k++) dx[k] = scale * exponential(x[k] - normaliser[r]);
        for (int i = 0; i < count; i++) {
            int below = place(targets[i * rows + r], bins, width, &share);
            dx[below] -= dloss[r] * weights[i] * (1 - share);
            dx[below + 1] -= dloss[r] * weights[i] * share;
        }
    }
    return DONE;
}
