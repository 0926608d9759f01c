// What kernels share beside products: the norm with its activation, and stacks of layers.

#include "products.h"

#define EPS 1e-4f

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
    union { uint32_t bits; float value; } power = {(uint32_t)((int32_t)n + 127) << 23};  // of NaN, any number will do
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

static inline int widest(const Layer *layers, int count) {
    int width = 0;
    for (int i = 0; i < count; i++) width = layers[i].outputs > width ? layers[i].outputs : width;
    return width;
}

static inline int pack_layers(const Layer *layers, int count, float **packed) {
    int failed = DONE;
    for (int i = 0; i < count; i++) {
        packed[i] = pack(layers[i].weight, 1, layers[i].inputs, layers[i].inputs, layers[i].outputs);
        if (!packed[i]) failed = OUT_OF_MEMORY;
    }
    return failed;
}

static inline void free_all(float **packed, int count) {
    for (int i = 0; i < count; i++) free(packed[i]);
}

// Some rows through all layers. The last layer's results go to its before and after, those of the others do too if
// `keep`, else to scratch, which holds three times rows x widest.
static inline void mlp_rows(const Layer *layers, int count, float *const *packed, const float *x, int64_t begin,
                            int rows, float *scratch, size_t width, int keep) {
    for (int i = 0; i < count; i++) {
        Layer l = layers[i];
        int last = i == count - 1;
        float *before = keep || (last && !l.scale) ? l.before + begin * l.outputs : scratch;
        product(x, l.inputs, packed[i], before, l.outputs, rows, l.inputs, l.outputs, EVERY_ROW(l.bias));
        x = before;
        if (l.scale) {
            float *after = keep || last ? l.after + begin * l.outputs : scratch + (1 + i % 2) * rows * width;
            for (int r = 0; r < rows; r++) norm_silu(before + r * l.outputs, l.scale, after + r * l.outputs, l.outputs);
            x = after;
        }
    }
}

