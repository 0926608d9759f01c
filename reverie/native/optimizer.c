// The steps of optim.py over a group of parameters in one buffer.

#include "shared.h"

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

// One step of Adam, or of LaProp without `adam`; correction1 and correction2 are 1 - beta^count.
void descend(int adam, float *weight, const float *gradient, float *step, float *square, int64_t size, float rate,
             float beta1, float beta2, float eps, float correction1, float correction2) {
#pragma omp parallel for simd schedule(static) if (parallel : size > 65536)
    for (int64_t j = 0; j < size; j++) {
        float g = gradient[j];
        square[j] = beta2 * square[j] + (1 - beta2) * g * g;
        float root = sqrtf(square[j] / correction2) + eps;
        step[j] = beta1 * step[j] + (1 - beta1) * (adam ? g : g / root);
        weight[j] -= rate * step[j] / correction1 / (adam ? root : 1);
    }
}
