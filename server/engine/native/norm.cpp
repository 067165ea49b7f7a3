// RMS normalisation in one pass over each row, where the models' own code takes eight operations.
//
//     y = x / sqrt(mean(x^2) + eps) * scale        (Zhang and Sennrich 2019, arXiv 1910.07467, equation 4)

#include <cmath>
#include <cstdint>

namespace {

constexpr int LANES = 16;
constexpr int64_t SMALL = 1 << 16;  // numbers that are done before a second thread has woken up

}  // namespace

extern "C" void rms_norm(const float *x, int64_t rows, int64_t width, const float *scale, float eps, float *y) {
#pragma omp parallel for if (rows * width > SMALL)
    for (int64_t row = 0; row < rows; row++) {
        const float *from = x + row * width;
        float *to = y + row * width;
        // Lanes of their own, so that the order of the sum is fixed and the compiler may use vectors.
        float squares[LANES] = {};
        int64_t whole = width / LANES * LANES;
        for (int64_t k = 0; k < whole; k += LANES)
            for (int lane = 0; lane < LANES; lane++) squares[lane] += from[k + lane] * from[k + lane];
        for (int64_t k = whole; k < width; k++) squares[k - whole] += from[k] * from[k];
        double sum = 0;
        for (float lane : squares) sum += lane;
        float factor = static_cast<float>(1 / std::sqrt(sum / static_cast<double>(width) + eps));
        for (int64_t k = 0; k < width; k++) to[k] = from[k] * factor * scale[k];
    }
}
