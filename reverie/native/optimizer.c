// The steps of optim.py over a group of parameters in one buffer.

#include "layout.h"
#include "shared.h"

// OptimizerOptions; FLOOR of optim.py is `floor`.
typedef struct {
    float beta1, beta2, eps, agc, floor, clip;
    int adam;
} Recipe;

// Summed in pieces, so that many small squares are not lost in a large sum.
static float root_of_squares(const float *x, int64_t size) {
    double total = 0;
    for (int64_t begin = 0; begin < size; begin += 4096) {
        int64_t end = begin + 4096 < size ? begin + 4096 : size;
        float sum = 0;
        for (int64_t j = begin; j < end; j++) sum += x[j] * x[j];
        total += sum;
    }
    return (float)sqrt(total);
}

static void scale(float *x, int64_t size, float factor) {
    for (int64_t j = 0; j < size; j++) x[j] *= factor;
}

// Scales each tensor's gradient to at most `limit` times the norm of its weights.
static void clip_adaptively(const float *weight, float *gradient, const int64_t *sizes, int count, float limit,
                            float floor) {
    for (int i = 0; i < count; weight += sizes[i], gradient += sizes[i], i++) {
        float weights = root_of_squares(weight, sizes[i]), gradients = root_of_squares(gradient, sizes[i]);
        float allowed = limit * (weights > floor ? weights : floor);
        if (gradients > allowed) scale(gradient, sizes[i], allowed / gradients);
    }
}

// One step, unless the gradient is not finite or `wanted` is 0. `count` is that of steps so far. The report: the norm of
// the gradient, and 1 where it was not finite.
int descend(const Recipe *recipe, float *weight, float *gradient, float *step, float *square, const int64_t *sizes,
            int tensors, int wanted, const float *rate, float *count, float *report) {
    Recipe r = *recipe;
    int64_t size = 0;
    for (int i = 0; i < tensors; i++) size += sizes[i];
    float norm = root_of_squares(gradient, size);
    report[0] = norm;
    report[1] = !isfinite(norm);
    if (!isfinite(norm) || !wanted) return DONE;
    *count += 1;
    if (r.agc > 0) clip_adaptively(weight, gradient, sizes, tensors, r.agc, r.floor);
    if (r.clip > 0) {
        if (r.agc > 0) norm = root_of_squares(gradient, size);
        if (norm > r.clip) scale(gradient, size, r.clip / norm);
    }
    float lr = *rate, correction1 = 1 - pow(r.beta1, *count), correction2 = 1 - pow(r.beta2, *count);
#pragma omp parallel for simd schedule(static) if (parallel : size > 65536)
    for (int64_t j = 0; j < size; j++) {
        float g = gradient[j];
        square[j] = r.beta2 * square[j] + (1 - r.beta2) * g * g;
        float root = sqrtf(square[j] / correction2) + r.eps;
        step[j] = r.beta1 * step[j] + (1 - r.beta1) * (r.adam ? g : g / root);
        weight[j] -= lr * step[j] / correction1 / (r.adam ? root : 1);
    }
    return DONE;
}

// What a gradient says of the last step, before `descend` changes either: their product, and the norms of both. Nothing
// finite where there was no step.
int agreement(const Recipe *recipe, const float *gradient, const float *step, const float *square, int64_t size,
              const float *count, float *report) {
    Recipe r = *recipe;
    float correction1 = 1 - pow(r.beta1, *count), correction2 = 1 - pow(r.beta2, *count);
    double along = 0, gradients = 0, directions = 0;
    for (int64_t begin = 0; begin < size; begin += 4096) {
        int64_t end = begin + 4096 < size ? begin + 4096 : size;
        float product = 0, of_gradient = 0, of_direction = 0;
        for (int64_t j = begin; j < end; j++) {
            float direction = step[j] / (r.adam ? sqrtf(square[j] / correction2) + r.eps : 1);
            product += gradient[j] * direction;
            of_gradient += gradient[j] * gradient[j];
            of_direction += direction * direction;
        }
        along += product, gradients += of_gradient, directions += of_direction;
    }
    report[0] = along / correction1;
    report[1] = sqrt(gradients);
    report[2] = sqrt(directions) / correction1;
    return DONE;
}

LAYOUT(Recipe, FIELD(Recipe, beta1), FIELD(Recipe, beta2), FIELD(Recipe, eps), FIELD(Recipe, agc),
       FIELD(Recipe, floor), FIELD(Recipe, clip), FIELD(Recipe, adam));
