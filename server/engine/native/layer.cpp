// What lies between the products of a decoder layer: rotary positions, norms of heads, residual sums, the gate.
//
// Every row is computed by itself, in one fixed order: neither its neighbours nor the number of threads matter.

#include <cmath>
#include <cstdint>

namespace {

constexpr int LANES = 16;
constexpr int64_t SMALL = 1 << 16;  // numbers that are done before a second thread has woken up

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float vec_u __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

inline vec load(const float *p) { return *reinterpret_cast<const vec_u *>(p); }
inline void store(float *p, vec v) { *reinterpret_cast<vec_u *>(p) = v; }

// 2^n by the exponent's bits, times a polynomial of the rest; relative error below 2e-7 for x from -87 to 88.
inline vec exp_of(vec x) {
    const vec shift = vec{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    x = x > 88.0f ? vec{} + 88.0f : x;
    vec t = x * 1.44269504f + shift, n = t - shift;
    vec f = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec y = f * (1.0f / 5040) + 1.0f / 720;
    y = y * f + 1.0f / 120;
    y = y * f + 1.0f / 24;
    y = y * f + 1.0f / 6;
    y = y * f + 0.5f;
    y = y * f + 1.0f;
    y = y * f + 1.0f;
    vec power = (vec)(((ints)t << 23) + 0x3f800000);
    return x < -87.0f ? vec{} : y * power;  // NaN stays
}

// Lanes of their own, so that the order of the sum is fixed and the compiler may use vectors.
inline float rms_factor(const float *x, int64_t width, float eps) {
    vec squares{};
    int64_t k = 0;
    for (; k + LANES <= width; k += LANES) squares += load(x + k) * load(x + k);
    double sum = 0;
    for (; k < width; k++) sum += x[k] * x[k];
    for (int lane = 0; lane < LANES; lane++) sum += squares[lane];
    return static_cast<float>(1 / std::sqrt(sum / static_cast<double>(width) + eps));
}

// One head: normalised, if there is a scale, then its first `rotary` numbers rotated in pairs (d, d + rotary/2).
void turn(float *x, int64_t dim, int64_t rotary, const float *cos, const float *sin, const float *scale,
          float eps) {
    if (scale) {
        float factor = rms_factor(x, dim, eps);
        for (int64_t d = 0; d < dim; d++) x[d] = x[d] * factor * scale[d];
    }
    int64_t half = rotary / 2;
    for (int64_t d = 0; d < half; d++) {
        float a = x[d], b = x[d + half];
        x[d] = a * cos[d] - b * sin[d];
        x[d + half] = b * cos[d + half] + a * sin[d + half];
    }
}

}  // namespace

extern "C" {

// q: (rows, heads, dim), k: (rows, kv_heads, dim), in place; cos, sin: (rows, rotary).
// Scales of the heads' norms, (dim), or none. Su et al. 2021, arXiv 2104.09864, as transformers pairs the numbers.
void rotate(float *q, float *k, int64_t rows, int64_t heads, int64_t kv_heads, int64_t dim, int64_t rotary,
            const float *cos, const float *sin, const float *q_scale, const float *k_scale, float eps) {
#pragma omp parallel for if (rows * (heads + kv_heads) * dim > SMALL)
    for (int64_t row = 0; row < rows; row++) {
        const float *c = cos + row * rotary, *s = sin + row * rotary;
        for (int64_t h = 0; h < heads; h++)
            turn(q + (row * heads + h) * dim, dim, rotary, c, s, q_scale, eps);
        for (int64_t h = 0; h < kv_heads; h++)
            turn(k + (row * kv_heads + h) * dim, dim, rotary, c, s, k_scale, eps);
    }
}

// sum += x, then y = sum / sqrt(mean(sum^2) + eps) * scale. All (rows, width).
void add_norm(const float *x, float *sum, int64_t rows, int64_t width, const float *scale, float eps, float *y) {
#pragma omp parallel for if (rows * width > SMALL)
    for (int64_t row = 0; row < rows; row++) {
        const float *from = x + row * width;
        float *to = sum + row * width, *out = y + row * width;
        for (int64_t k = 0; k < width; k++) to[k] += from[k];
        float factor = rms_factor(to, width, eps);
        for (int64_t k = 0; k < width; k++) out[k] = to[k] * factor * scale[k];
    }
}

// gate = gate / (1 + exp(-gate)) * up, over n numbers.
void silu_product(float *gate, const float *up, int64_t n) {
#pragma omp parallel for if (n > SMALL)
    for (int64_t i = 0; i < n / LANES * LANES; i += LANES) {
        vec g = load(gate + i);
        store(gate + i, g / (1.0f + exp_of(-g)) * load(up + i));
    }
    for (int64_t i = n / LANES * LANES; i < n; i++) gate[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

// sum += x, over n numbers.
void add(const float *x, float *sum, int64_t n) {
#pragma omp parallel for if (n > SMALL)
    for (int64_t i = 0; i < n; i++) sum[i] += x[i];
}

}
