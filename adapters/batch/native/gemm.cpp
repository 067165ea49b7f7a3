// Products of few rows with a frozen weight, and with the adapters of each row, at the speed of memory.
//
// A weight W (outputs x inputs) is stored as panels of 16 outputs: panel p holds, for every input k, the 16
// numbers W[16p .. 16p+15][k] side by side. One vector register then holds 16 outputs, and a row's product is
// one chain of multiply-adds over k, the same chain whatever stands beside it: a row's result does not depend
// on the other rows, nor on how many there are.
//
// Panels are float32, or bfloat16 where that loses nothing: half the bytes, same result. Of bfloat16 numbers the
// two of neighbouring inputs share a 32-bit word, so that a shift gives one register and a mask the other.

#include <cstdint>
#include <cstring>

namespace {

constexpr int LANES = 16;
constexpr int FEW = 5;     // rows for which four panels' sums fit into the registers
constexpr int MANY = 12;   // rows for which two panels' sums do
constexpr int64_t PIECE = 96;  // panels of a B that are read by one thread, one after another
constexpr int64_t SMALL = 1 << 16;  // multiply-adds that are done before a second thread has woken up

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float vec_u __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint32_t words_u __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

inline vec load(const float *p) { return *reinterpret_cast<const vec_u *>(p); }

// Numbers of one panel for `inputs` inputs.
template <class W>
inline int64_t panel_size(int64_t inputs) {
    return (sizeof(W) == 2 ? (inputs + 1) / 2 * 2 : inputs) * LANES;
}

inline float number(uint16_t v) {
    uint32_t w = static_cast<uint32_t>(v) << 16;
    float f;
    std::memcpy(&f, &w, 4);
    return f;
}

inline void put(uint16_t *p, float v) {  // rounds to nearest even; NaN stays NaN
    uint32_t w;
    std::memcpy(&w, &v, 4);
    *p = v != v ? 0x7fc0 : static_cast<uint16_t>((w + 0x7fff + ((w >> 16) & 1)) >> 16);
}

// sums[r][p] = sum_k x[r][k] panel[p][k]: the sixteen outputs of row r in panel p.
template <int ROWS, int PANELS, class W>
__attribute__((noinline)) void tile(const float *x, int64_t ldx, const W *panel, int64_t inputs, vec *sums) {
    vec sum[ROWS][PANELS];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int p = 0; p < PANELS; p++) sum[r][p] = vec{};
    auto add = [&](const vec (&w)[PANELS], int64_t k) __attribute__((always_inline)) {
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            float v = x[r * ldx + k];
#pragma GCC unroll 4
            for (int p = 0; p < PANELS; p++) sum[r][p] += v * w[p];
        }
    };
    int64_t size = panel_size<W>(inputs);
    vec w[PANELS];
    if constexpr (sizeof(W) == 2) {
        words pairs[PANELS];
#pragma GCC unroll 1
        for (int64_t k = 0; k < inputs; k += 2) {
#pragma GCC unroll 4
            for (int p = 0; p < PANELS; p++) {
                pairs[p] = *reinterpret_cast<const words_u *>(panel + p * size + k * LANES);
                w[p] = (vec)(pairs[p] << 16);  // bfloat16 is the upper half of a float32
            }
            add(w, k);
            if (k + 1 == inputs) break;
#pragma GCC unroll 4
            for (int p = 0; p < PANELS; p++) w[p] = (vec)(pairs[p] & 0xffff0000u);
            add(w, k + 1);
        }
    } else {
#pragma GCC unroll 1
        for (int64_t k = 0; k < inputs; k++) {
#pragma GCC unroll 4
            for (int p = 0; p < PANELS; p++) w[p] = load(panel + p * size + k * LANES);
            add(w, k);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int p = 0; p < PANELS; p++) sums[r * PANELS + p] = sum[r][p];
}

template <class W>
using Tile = void (*)(const float *, int64_t, const W *, int64_t, vec *);

// The tile for 1 .. MANY rows by 1, 2 or (few rows only) 4 panels.
template <class W>
Tile<W> tile_for(int rows, int panels) {
    static constexpr Tile<W> one[] = {
        tile<1, 1, W>, tile<2, 1, W>, tile<3, 1, W>, tile<4, 1, W>, tile<5, 1, W>, tile<6, 1, W>,
        tile<7, 1, W>, tile<8, 1, W>, tile<9, 1, W>, tile<10, 1, W>, tile<11, 1, W>, tile<12, 1, W>};
    static constexpr Tile<W> two[] = {
        tile<1, 2, W>, tile<2, 2, W>, tile<3, 2, W>, tile<4, 2, W>, tile<5, 2, W>, tile<6, 2, W>,
        tile<7, 2, W>, tile<8, 2, W>, tile<9, 2, W>, tile<10, 2, W>, tile<11, 2, W>, tile<12, 2, W>};
    static constexpr Tile<W> four[] = {
        tile<1, 4, W>, tile<2, 4, W>, tile<3, 4, W>, tile<4, 4, W>, tile<5, 4, W>};
    return panels == 4 ? four[rows - 1] : panels == 2 ? two[rows - 1] : one[rows - 1];
}

// All rows by `count` neighbouring panels. `store(row, panel, sums)`.
template <class W, class Store>
void panels_of(int64_t rows, const float *x, int64_t ldx, const W *panel, int count, int64_t inputs,
               const Store &store) {
    vec sums[2 * MANY];
    int most = rows <= FEW ? 4 : 2;
    int64_t blocks = (rows + MANY - 1) / MANY;
    for (int first = 0; first < count;) {
        int width = count - first >= most ? most : count - first >= 2 ? 2 : 1;
        for (int64_t b = 0, row = 0; b < blocks; b++) {
            int64_t next = rows * (b + 1) / blocks;
            int n = static_cast<int>(next - row);
            tile_for<W>(n, width)(x + row * ldx, ldx, panel + first * panel_size<W>(inputs), inputs, sums);
            for (int r = 0; r < n; r++)
                for (int p = 0; p < width; p++) store(row + r, first + p, sums[r * width + p]);
            row = next;
        }
        first += width;
    }
}

struct Segment {  // rows start .. stop-1 use the adapter of this slot
    int64_t start, stop, slot;
};

struct Shrink {  // one adapter's A of one group of modules: panels over its columns (the ranks, side by side)
    int64_t panels, columns, bfloat16;
};

struct Expand {  // one adapter's B of one module: panels over the outputs, `rank` inputs from column `start`
    int64_t panels, start, rank, bfloat16;
    double scale;
    const float *magnitude, *shift;  // of the base's output, where the adapter has them
};

// The last panel may be wider than the outputs that are left.
inline void write(uint16_t *y, int64_t width, vec sums) {
    for (int lane = 0; lane < width && lane < LANES; lane++) put(y + lane, sums[lane]);
}

inline void write(float *y, int64_t width, vec sums) {
    if (width >= LANES) *reinterpret_cast<vec_u *>(y) = sums;
    else for (int lane = 0; lane < width; lane++) y[lane] = sums[lane];
}

inline vec read(const uint16_t *y, int64_t width) {
    vec v{};
    for (int lane = 0; lane < width && lane < LANES; lane++) v[lane] = number(y[lane]);
    return v;
}

inline vec read(const float *y, int64_t width) {
    if (width >= LANES) return *reinterpret_cast<const vec_u *>(y);
    vec v{};
    for (int lane = 0; lane < width; lane++) v[lane] = y[lane];
    return v;
}

// The panels first .. first + count of s B^T, for the rows of one segment.
template <class Store>
void delta_panels(const Segment &own, const Expand &b, const float *s, int64_t lds, int64_t first, int64_t count,
                  const Store &store) {
    const float *from = s + own.start * lds + b.start;
    int64_t rows = own.stop - own.start;
    int width = static_cast<int>(count);
    if (b.bfloat16) {
        auto *panels = reinterpret_cast<const uint16_t *>(b.panels) + first * panel_size<uint16_t>(b.rank);
        panels_of(rows, from, lds, panels, width, b.rank, store);
    } else {
        auto *panels = reinterpret_cast<const float *>(b.panels) + first * panel_size<float>(b.rank);
        panels_of(rows, from, lds, panels, width, b.rank, store);
    }
}

// y[rows of one segment][those panels] = magnitude * y + scale * s B^T + shift. One copy of it for all callers:
// inlined ones could join other multiplications and additions, and differ in the last bit.
template <class Y>
__attribute__((noinline)) void expand_panels(const Segment &own, const Expand &b, const float *s, int64_t lds, Y *y,
                                             int64_t outputs, int64_t first, int64_t count) {
    float scale = static_cast<float>(b.scale);
    if (b.magnitude || b.shift) {
        delta_panels(own, b, s, lds, first, count, [&](int64_t r, int p, vec sums) {
            int64_t column = (first + p) * LANES, width = outputs - column;
            Y *at = y + (own.start + r) * outputs + column;
            vec result = read(at, width);
            if (b.magnitude) result *= read(b.magnitude + column, width);
            result += scale * sums;
            if (b.shift) result += read(b.shift + column, width);
            write(at, width, result);
        });
    } else if (b.panels) {
        delta_panels(own, b, s, lds, first, count, [&](int64_t r, int p, vec sums) {
            int64_t column = (first + p) * LANES;
            Y *at = y + (own.start + r) * outputs + column;
            write(at, outputs - column, read(at, outputs - column) + scale * sums);
        });
    }
}

struct Linear {  // one module: y = x W^T + bias, plus each row's delta, whose table starts at `table`
    const void *panels;
    int64_t bfloat16, outputs;
    const float *bias;
    float *y;
    const Expand *table;
};

template <class W>
void linear_panels(const float *x, int64_t rows, int64_t inputs, const Linear &m, int64_t first, int count) {
    auto *panels = static_cast<const W *>(m.panels) + first * panel_size<W>(inputs);
    panels_of(rows, x, inputs, panels, count, inputs, [&](int64_t r, int p, vec sums) {
        int64_t column = (first + p) * LANES, width = m.outputs - column;
        if (m.bias) sums += read(m.bias + column, width);
        write(m.y + r * m.outputs + column, width, sums);
    });
}

// The module that has the `share`th piece of `step` panels; `share` becomes its first panel there.
const Linear *of_module(const Linear *m, int64_t &share, int64_t step) {
    for (int64_t own; share >= (own = (m->outputs + step * LANES - 1) / (step * LANES)); m++) share -= own;
    share *= step;
    return m;
}

template <class W>
void shrink_rows(const float *x, int64_t rows, int64_t inputs, const W *panels, int64_t columns, float *s,
                 int64_t lds) {
    int total = static_cast<int>((columns + LANES - 1) / LANES);
    panels_of(rows, x, inputs, panels, total, inputs, [&](int64_t r, int p, vec sums) {
        write(s + r * lds + p * LANES, columns - p * LANES, sums);
    });
}

void shrink_segment(const float *x, int64_t inputs, const Segment &own, const Shrink &a, float *s, int64_t lds) {
    if (!a.panels) return;
    const float *from = x + own.start * inputs;
    float *to = s + own.start * lds;
    int64_t rows = own.stop - own.start;
    if (a.bfloat16)
        shrink_rows(from, rows, inputs, reinterpret_cast<const uint16_t *>(a.panels), a.columns, to, lds);
    else
        shrink_rows(from, rows, inputs, reinterpret_cast<const float *>(a.panels), a.columns, to, lds);
}

template <class Y>
void expand(const Segment *segments, int64_t n, const Expand *table, int64_t stride, const float *s,
            int64_t lds, Y *y, int64_t outputs) {
    int64_t total = (outputs + LANES - 1) / LANES;
#pragma omp parallel for schedule(dynamic, 1) if (n * outputs > SMALL / 16)
    for (int64_t i = 0; i < n; i++)
        expand_panels(segments[i], table[segments[i].slot * stride], s, lds, y, outputs, 0, total);
}

// The layout of panels, in words of 32 bits: those of 16 outputs side by side, for every input or pair of inputs.
// `word(k, row)` is the kth word of a row.
template <class Word>
void pack(int64_t outputs, int64_t words, uint32_t *panels, const Word &word) {
    constexpr int64_t BLOCK = 16;  // words of 16 rows that fit into the nearest cache with what they become
    for (int64_t first = 0; first < outputs; first += LANES, panels += words * LANES) {
        int64_t rows = outputs - first < LANES ? outputs - first : LANES;
        if (rows < LANES) std::memset(panels, 0, words * LANES * sizeof(uint32_t));
        for (int64_t block = 0; block < words; block += BLOCK) {
            int64_t end = words - block < BLOCK ? words : block + BLOCK;
            for (int64_t lane = 0; lane < rows; lane++)
                for (int64_t k = block; k < end; k++) panels[k * LANES + lane] = word(k, first + lane);
        }
    }
}

struct Matrix {  // (outputs, inputs), to be put into panels
    const void *numbers;
    int64_t outputs, inputs;
    int64_t kind;  // 0: float32 as it is; 1: float32 that bfloat16 holds, of which the upper halves are kept; 2: bfloat16
    uint32_t *panels;
};

constexpr int64_t PACK_ROWS = 16 * LANES;

int64_t pieces_of(const Matrix &m) { return (m.outputs + PACK_ROWS - 1) / PACK_ROWS; }

void pack_rows(const Matrix &m, int64_t first) {
    int64_t rows = m.outputs - first < PACK_ROWS ? m.outputs - first : PACK_ROWS, inputs = m.inputs;
    int64_t words = m.kind ? (inputs + 1) / 2 : inputs;
    uint32_t *panels = m.panels + first * words;
    const uint32_t *w = static_cast<const uint32_t *>(m.numbers) + first * inputs;
    const uint16_t *h = static_cast<const uint16_t *>(m.numbers) + first * inputs;
    if (m.kind == 0)
        pack(rows, words, panels, [=](int64_t k, int64_t row) { return w[row * inputs + k]; });
    else if (m.kind == 1)
        pack(rows, words, panels, [=](int64_t k, int64_t row) {
            const uint32_t *pair = w + row * inputs + 2 * k;
            return pair[0] >> 16 | (2 * k + 1 < inputs ? pair[1] & 0xffff0000u : 0);
        });
    else
        pack(rows, words, panels, [=](int64_t k, int64_t row) {
            const uint16_t *pair = h + row * inputs + 2 * k;
            return pair[0] | (2 * k + 1 < inputs ? static_cast<uint32_t>(pair[1]) << 16 : 0);
        });
}

}  // namespace

extern "C" {

// Whether bfloat16 would change any of these numbers.
int needs_float32(const uint32_t *w, int64_t n) {
    uint32_t low = 0;
    for (int64_t first = 0; first < n && !low; first += 4096)
        for (int64_t i = first; i < n && i < first + 4096; i++) low |= w[i] & 0xffff;
    return low != 0;
}

// Puts all of these into panels, by all threads.
void pack_all(const Matrix *matrices, int64_t count) {
    int64_t pieces = 0;
    for (int64_t i = 0; i < count; i++) pieces += pieces_of(matrices[i]);
#pragma omp parallel for schedule(dynamic, 1) if (pieces > 1)
    for (int64_t piece = 0; piece < pieces; piece++) {
        const Matrix *m = matrices;
        int64_t first = piece;
        for (int64_t own; first >= (own = pieces_of(*m)); m++) first -= own;
        pack_rows(*m, first * PACK_ROWS);
    }
}

// Modules that read the same rows. `n` segments of them, maybe none, have deltas: their products with A go
// through `s`. All threads are woken once, and wait for each other once.
void linears(const float *x, int64_t rows, int64_t inputs, const Linear *modules, int64_t count,
             const Segment *segments, int64_t n, const Shrink *shrinks, int64_t shrink_stride,
             int64_t expand_stride, float *s, int64_t lds) {
    int64_t outputs = 0;
    for (int64_t m = 0; m < count; m++) outputs += modules[m].outputs;
    int64_t step = outputs < 64 * LANES ? 2 : 4, shares = 0, pieces = 0;
    for (int64_t m = 0; m < count; m++) {
        shares += (modules[m].outputs + step * LANES - 1) / (step * LANES);
        pieces += (modules[m].outputs + PIECE * LANES - 1) / (PIECE * LANES);
    }
#pragma omp parallel if (rows * inputs * outputs > SMALL)
    {
        // Dynamic, so that a thread whose core is taken by another process holds up one share, not half of all.
#pragma omp for schedule(dynamic, 1) nowait
        for (int64_t i = 0; i < n; i++)
            shrink_segment(x, inputs, segments[i], shrinks[segments[i].slot * shrink_stride], s, lds);
#pragma omp for schedule(dynamic, 1)
        for (int64_t share = 0; share < shares; share++) {
            int64_t first = share;
            const Linear *m = of_module(modules, first, step);
            int64_t left = (m->outputs + LANES - 1) / LANES - first;
            int width = static_cast<int>(left < step ? left : step);
            if (m->bfloat16) linear_panels<uint16_t>(x, rows, inputs, *m, first, width);
            else linear_panels<float>(x, rows, inputs, *m, first, width);
        }
#pragma omp for schedule(dynamic, 1) nowait
        for (int64_t task = 0; task < n * pieces; task++) {
            const Segment &own = segments[task / pieces];
            int64_t first = task % pieces;
            const Linear *m = of_module(modules, first, PIECE);
            int64_t left = (m->outputs + LANES - 1) / LANES - first;
            expand_panels(own, m->table[own.slot * expand_stride], s, lds, m->y, m->outputs, first,
                          left < PIECE ? left : PIECE);
        }
    }
}

// s[rows of each segment] = x A^T
void shrink(const float *x, int64_t inputs, const Segment *segments, int64_t n, const Shrink *table,
            int64_t stride, float *s, int64_t lds) {
#pragma omp parallel for schedule(dynamic, 1) if (n > 1 && n * inputs > SMALL / 16)
    for (int64_t i = 0; i < n; i++)
        shrink_segment(x, inputs, segments[i], table[segments[i].slot * stride], s, lds);
}

// y[rows of each segment] = magnitude * y + scale * s B^T + shift
void expand_f32(const Segment *segments, int64_t n, const Expand *table, int64_t stride, const float *s,
                int64_t lds, float *y, int64_t outputs) {
    expand(segments, n, table, stride, s, lds, y, outputs);
}

void expand_bf16(const Segment *segments, int64_t n, const Expand *table, int64_t stride, const float *s,
                 int64_t lds, uint16_t *y, int64_t outputs) {
    expand(segments, n, table, stride, s, lds, y, outputs);
}

}
