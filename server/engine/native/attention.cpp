// Attention of one step over paged KV: writes the step's keys and values, then attends, straight from the cache.
//
// The keys that a block of queries sees are taken in splits of SPLIT, counted from the sequence's first token:
//
//     scores = query x keys (transposed as they are read, TILE at a time)
//     part   = their peak, the sum of exp(score - peak), and that weighting of the values
//     state  = fold(state, part), split after split
//
// Rows of a block are its queries times the heads that share a kv head, so keys are read once for all of them.
// Every sum of a row is one chain in the order of the keys, and what a row does not see adds zero: a row's
// result depends neither on its neighbours, nor on its chunk, nor on the number of threads, bit for bit.
// Numbers are float32 or bfloat16, sums are float32. Slots that are not seen are not read: they may hold NaN.

#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

// The fields of `_Call` in paged.py. Strides count numbers; the last dimension of every tensor is contiguous.
struct Call {
    const void *query, *key, *value;  // (tokens, heads, k_dim), (tokens, kv_heads, k_dim), (.., v_dim)
    void *out;                        // (tokens, heads, v_dim)
    void *keys, *values;              // (slots, kv_heads, k_dim), (slots, kv_heads, v_dim)
    const float *sinks;               // (heads), or none
    const int64_t *slots;             // (tokens): where each row's key and value go
    const int32_t *tables;            // (sequences, table_row): the sequence's blocks
    const int32_t *lengths;           // (sequences): tokens with those of this step
    const int32_t *starts;            // (sequences + 1): first row of each sequence
    char *scratch;
    int64_t scratch_bytes;
    int64_t query_row, query_head, key_row, key_head, value_row, value_head;
    int64_t tokens, sequences, heads, kv_heads, k_dim, v_dim, block_size, table_row;
    int64_t window;  // 0: none
    int64_t bfloat16, threads;
    double scale, softcap;  // softcap 0: none
};

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, PANELS = 4;
#elif defined(__AVX__)
constexpr int LANES = 8, PANELS = 2;
#else
constexpr int LANES = 4, PANELS = 2;
#endif
constexpr int ROWS = 6;          // with PANELS vectors each, their sums fit into the registers
constexpr int TILE = 64;         // keys that are transposed at a time
constexpr int SPLIT = 256;       // keys of one part
constexpr int BLOCK_ROWS = 192;  // rows of a block, unless more heads share a kv head
constexpr int AHEAD = 16;        // rows fetched before they are needed, at least LANES
constexpr int BLOCKS_EACH = 4;   // blocks for each thread; greater ones are spread over their splits
constexpr int64_t LEAST = 1 << 15;  // numbers read that are worth waking a thread
constexpr float NONE = -std::numeric_limits<float>::infinity();

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float vec_u __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves_u __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

inline vec load(const float *p) { return *reinterpret_cast<const vec_u *>(p); }

inline vec load(const uint16_t *p) {  // bfloat16 is the upper half of a float32
    return (vec)(__builtin_convertvector(*reinterpret_cast<const halves_u *>(p), words) << 16);
}

inline void store(float *p, vec v) { *reinterpret_cast<vec_u *>(p) = v; }

inline float number(float v) { return v; }

inline float number(uint16_t v) {
    uint32_t w = static_cast<uint32_t>(v) << 16;
    float f;
    std::memcpy(&f, &w, 4);
    return f;
}

inline void store(uint16_t *p, vec v) {  // rounds to nearest even; NaN stays NaN
    words w = (words)v;
    w = v != v ? words{} + 0x7fc0 : (w + 0x7fff + ((w >> 16) & 1)) >> 16;
    *reinterpret_cast<halves_u *>(p) = __builtin_convertvector(w, halves_u);
}

inline int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// 2^n by the exponent's bits, times a polynomial of the rest; relative error below 2e-7 for x up to 88.
inline vec exp_of(vec x) {
    const vec shift = vec{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
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

inline float exp_of(float x) { return exp_of(vec{} + x)[0]; }

inline vec tanh_of(vec x) {
    vec size = x < 0.0f ? -x : x, square = x * x;
    vec e = exp_of(size * -2.0f), big = (1.0f - e) / (1.0f + e);
    vec y = square * (62.0f / 2835) - 17.0f / 315;
    y = y * square + 2.0f / 15;
    y = y * square - 1.0f / 3;
    y = y * square * x + x;
    return size < 0.25f ? y : (x < 0.0f ? -big : big);
}

using lanes = std::make_integer_sequence<int, LANES>;

template <int... I>
inline ints lane_numbers(std::integer_sequence<int, I...>) {
    return ints{I...};
}

#if defined(__clang__)
#define SHUFFLE(a, b, lane) __builtin_shufflevector(a, b, (lane)...)
#else
#define SHUFFLE(a, b, lane) __builtin_shuffle(a, b, ints{(lane)...})
#endif

// Lane i of the result is a[i] or b[i - S] with SHIFT 0, a[i + S] or b[i] with SHIFT S, as bit S of i says.
template <int S, int SHIFT, int... I>
inline vec mix(vec a, vec b, std::integer_sequence<int, I...>) {
    return SHUFFLE(a, b, I + SHIFT + (I & S) * ((LANES - S) / S));
}

template <int S = 1>
inline void transpose(vec (&row)[LANES]) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) {
        if (i & S) continue;
        vec a = row[i], b = row[i + S];
        row[i] = mix<S, 0>(a, b, lanes{});
        row[i + S] = mix<S, S>(a, b, lanes{});
    }
    if constexpr (2 * S < LANES) transpose<2 * S>(row);
}

template <int S, int... I>
inline vec swap(vec v, std::integer_sequence<int, I...>) {
    return SHUFFLE(v, v, I ^ S);
}

// All lanes joined into one number, neighbours first.
template <int S = 1, class Join>
inline float across(vec v, const Join &join) {
    v = join(v, swap<S>(v, lanes{}));
    if constexpr (2 * S < LANES) return across<2 * S>(v, join);
    return v[0];
}

// sum[r][n] (+)= sum_k a[r][k] b[k][n], for R rows and P vectors of n.
template <int R, int P, bool ADD>
inline void product(const float *a, int64_t lda, const float *b, int64_t ldb, int64_t depth, float *sum,
                    int64_t lds) {
    vec acc[R][P];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int p = 0; p < P; p++) acc[r][p] = ADD ? load(sum + r * lds + p * LANES) : vec{};
    for (int64_t k = 0; k < depth; k++) {
        vec column[P];
#pragma GCC unroll 8
        for (int p = 0; p < P; p++) column[p] = load(b + k * ldb + p * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int p = 0; p < P; p++) acc[r][p] += a[r * lda + k] * column[p];
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int p = 0; p < P; p++) store(sum + r * lds + p * LANES, acc[r][p]);
}

template <int R, bool ADD>
inline void products(int rows, int64_t width, const float *a, int64_t lda, const float *b, int64_t ldb,
                     int64_t depth, float *sum, int64_t lds) {
    if constexpr (R > 0) {
        if (rows != R) return products<R - 1, ADD>(rows, width, a, lda, b, ldb, depth, sum, lds);
        int64_t n = 0;
        for (; n + PANELS * LANES <= width; n += PANELS * LANES)
            product<R, PANELS, ADD>(a, lda, b + n, ldb, depth, sum + n, lds);
        if constexpr (PANELS > 2)
            for (; n + 2 * LANES <= width; n += 2 * LANES)
                product<R, 2, ADD>(a, lda, b + n, ldb, depth, sum + n, lds);
        for (; n < width; n += LANES) product<R, 1, ADD>(a, lda, b + n, ldb, depth, sum + n, lds);
    }
}

// Some queries of one sequence for one kv head, over all splits that they see, or over one of them.
struct Item {
    int64_t sequence, head, first, queries;  // `first` counts the sequence's queries of this step
    int64_t split, splits;
    int64_t part, parts;  // its place among the items of the same block
    int64_t state;        // where its unfinished state is kept, if there are others
};

// What one thread works with, or where a state is kept. Sizes are those of the largest block.
struct Shape {
    int64_t group, queries, rows, v_width;
    explicit Shape(const Call &c)
        : group(c.heads / c.kv_heads),
          queries(most(1, BLOCK_ROWS / group)),
          rows(up(queries * group, LANES)),
          v_width(up(c.v_dim, LANES)) {}
    int64_t state_numbers() const { return rows * (v_width + 2); }
    int64_t work_numbers(const Call &c) const {
        return up(state_numbers() + rows * (c.k_dim + SPLIT + v_width + 2) + TILE * most(c.k_dim, v_width) +
                      c.k_dim,
                  LANES);
    }
};

struct State {
    float *peak, *total, *sum;  // (rows), (rows), (rows, v_width)
    State(float *p, const Shape &s) : peak(p), total(p + s.rows), sum(p + 2 * s.rows) {}
};

// Takes one more part into row r: the peak of its scores, the total of their exps, its sum of values.
inline void fold(const State &to, int64_t r, float peak, float total, const float *sum, int64_t width) {
    float top = peak > to.peak[r] ? peak : to.peak[r];
    if (top == NONE) return void(to.total[r] += total);  // nothing seen, unless it is NaN
    float was = exp_of(to.peak[r] - top), is = exp_of(peak - top);
    to.peak[r] = top;
    to.total[r] = to.total[r] * was + total * is;
    float *into = to.sum + r * width;
    if (!sum) {
        for (int64_t i = 0; i < width; i += LANES) store(into + i, load(into + i) * was);
        return;
    }
    for (int64_t i = 0; i < width; i += LANES) store(into + i, load(into + i) * was + load(sum + i) * is);
}

inline void clear(const State &state, int64_t rows, int64_t width) {
    for (int64_t r = 0; r < rows; r++) state.peak[r] = NONE, state.total[r] = 0;
    std::memset(state.sum, 0, sizeof(float) * rows * width);
}

template <class T>
inline void fetch(const T *row, int64_t dim) {
    for (int64_t d = 0; d < dim; d += 64 / sizeof(T)) __builtin_prefetch(row + d);
}

// The tile's rows as they are, padded with zeros to `width`. Up to AHEAD more of `rows` are fetched.
template <class T>
__attribute__((noinline)) void copy_rows(float *to, int64_t width, int64_t dim, int64_t count,
                                         const T *const *rows) {
    for (int64_t t = 0; t < count; t++) {
        const T *from = rows[t];
        fetch(rows[t + AHEAD], dim);
        int64_t d = 0;
        for (; d + LANES <= dim; d += LANES) store(to + d, load(from + d));
        for (; d < dim; d++) to[d] = number(from[d]);
        for (; d < width; d++) to[d] = 0;
        to += width;
    }
}

// The tile's rows as columns: `to` is (dim, TILE). Up to AHEAD more of `rows` are fetched.
template <class T>
__attribute__((noinline)) void transpose_rows(float *to, int64_t dim, int64_t count, const T *const *rows) {
    for (int64_t t = 0; t < count; t += LANES) {
        for (int i = 0; i < LANES; i++) fetch(rows[t + AHEAD + i], dim);
        int64_t d = 0;
        for (; d + LANES <= dim; d += LANES) {
            vec line[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) line[i] = load(rows[t + i] + d);
            transpose(line);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) store(to + (d + i) * TILE + t, line[i]);
        }
        for (; d < dim; d++)
            for (int i = 0; i < LANES; i++) to[d * TILE + t + i] = number(rows[t + i][d]);
    }
}

// Makes a row's scores in columns first .. last-1 of its split into exp(score - peak), and those outside
// seen_first .. seen_last-1 into zero.
inline void exponents(float *scores, int64_t first, int64_t last, int64_t seen_first, int64_t seen_last,
                      float softcap, float &peak, float &total) {
    int64_t stop = least(last, up(most(seen_last, first), LANES));
    vec peaks = vec{} + NONE, totals = vec{};
    ints column = lane_numbers(lanes{}) + static_cast<int32_t>(first);
    for (int64_t i = first; i < stop; i += LANES, column += LANES) {
        vec s = load(scores + i);
        if (softcap != 0) s = tanh_of(s / softcap) * softcap;
        s = column < static_cast<int32_t>(seen_first) ? vec{} + NONE : s;
        s = column < static_cast<int32_t>(seen_last) ? s : vec{} + NONE;
        peaks = s > peaks ? s : peaks;
        store(scores + i, s);
    }
    peak = across(peaks, [](vec a, vec b) { return a > b ? a : b; });
    float top = peak == NONE ? 0 : peak;
    for (int64_t i = first; i < stop; i += LANES) {
        vec e = exp_of(load(scores + i) - top);
        totals += e;
        store(scores + i, e);
    }
    for (int64_t i = stop; i < last; i += LANES) store(scores + i, vec{});
    total = across(totals, [](vec a, vec b) { return a + b; });
}

// One thread's turn at one item.
template <class T>
struct Block {
    const Call &c;
    const Shape &shape;
    const Item &item;
    State state;
    float *scores, *sum, *tile, *peak, *total, *query, *zeros;  // (rows, SPLIT), (rows, v_width), one tile, ..
    int64_t rows, past;                          // `past`: tokens before the item's first query
    const T *keys[SPLIT + AHEAD], *values[SPLIT + AHEAD];

    Block(const Call &c, const Shape &s, const Item &i, float *work, float *kept)
        : c(c), shape(s), item(i), state(kept ? kept : work, s) {
        scores = work + s.state_numbers();
        sum = scores + s.rows * SPLIT;
        tile = sum + s.rows * s.v_width;
        peak = tile + TILE * most(c.k_dim, s.v_width);
        total = peak + s.rows;
        query = total + s.rows;
        zeros = query + s.rows * c.k_dim;
        rows = i.queries * s.group;
        past = c.lengths[i.sequence] - (c.starts[i.sequence + 1] - c.starts[i.sequence]) + i.first;
    }

    int64_t seen_last(int64_t row) const { return past + row / shape.group + 1; }
    int64_t seen_first(int64_t row) const { return c.window ? most(0, seen_last(row) - c.window) : 0; }

    void run() {
        take_queries();
        clear(state, rows, shape.v_width);
        std::memset(zeros, 0, sizeof(float) * c.k_dim);
        for (int64_t s = item.split; s < item.split + item.splits; s++) attend(s * SPLIT);
    }

    void take_queries() {
        const T *q = static_cast<const T *>(c.query) + (c.starts[item.sequence] + item.first) * c.query_row +
                     item.head * shape.group * c.query_head;
        for (int64_t r = 0; r < rows; r++) {
            const T *from = q + r / shape.group * c.query_row + r % shape.group * c.query_head;
            float scale = static_cast<float>(c.scale), *to = query + r * c.k_dim;
            int64_t d = 0;
            for (; d + LANES <= c.k_dim; d += LANES) store(to + d, load(from + d) * scale);
            for (; d < c.k_dim; d++) to[d] = number(from[d]) * scale;
        }
    }

    // Finds the rows of the cache that hold tokens first .. last-1: keys[t - base], values[t - base].
    // Keys around them are zeros, as far as they are multiplied.
    void find(int64_t base, int64_t first, int64_t last) {
        const int32_t *table = c.tables + item.sequence * c.table_row;
        const T *key = static_cast<const T *>(c.keys) + item.head * c.k_dim;
        const T *value = static_cast<const T *>(c.values) + item.head * c.v_dim;
        const T *nothing = reinterpret_cast<const T *>(zeros);
        int64_t block = first / c.block_size, offset = first % c.block_size;
        for (int64_t t = 0; t < first - base; t++) keys[t] = nothing;
        for (int64_t t = first - base; t < last - base; t++) {
            int64_t row = (table[block] * c.block_size + offset) * c.kv_heads;
            keys[t] = key + row * c.k_dim;
            values[t] = value + row * c.v_dim;
            if (++offset == c.block_size) block++, offset = 0;
        }
        for (int64_t t = last - base; t < least(last - base + LANES + AHEAD, SPLIT + AHEAD); t++)
            keys[t] = nothing, values[t] = values[last - base - 1];
    }

    template <class Work>
    void each_rows(const Work &work) const {  // ROWS at a time, as evenly as it goes
        int64_t turns = (rows + ROWS - 1) / ROWS;
        for (int64_t i = 0; i < turns; i++) {
            int64_t r = rows * i / turns;
            work(r, rows * (i + 1) / turns - r);
        }
    }

    // The keys base .. base + SPLIT - 1, as far as any row sees them.
    void attend(int64_t base) {
        int64_t first = most(seen_first(0), base), last = least(seen_last(rows - 1), base + SPLIT);
        int64_t start = base + (first - base) / TILE * TILE;
        find(base, first, last);
        for (int64_t t = start; t < last; t += TILE) {
            int64_t count = up(least(TILE, last - t), LANES);
            transpose_rows(tile, c.k_dim, count, keys + (t - base));
            each_rows([&](int64_t r, int64_t n) {
                int64_t width = least(count, up(seen_last(r + n - 1) - t, LANES));
                products<ROWS, false>(n, width, query + r * c.k_dim, c.k_dim, tile, TILE, c.k_dim,
                                      scores + r * SPLIT + (t - base), SPLIT);
            });
        }
        for (int64_t r = 0; r < rows; r++)
            exponents(scores + r * SPLIT, start - base, up(last - base, LANES), seen_first(r) - base,
                      seen_last(r) - base, static_cast<float>(c.softcap), peak[r], total[r]);
        std::memset(sum, 0, sizeof(float) * rows * shape.v_width);
        for (int64_t t = start; t < last; t += TILE) {
            int64_t begin = most(t, first), count = least(t + TILE, last) - begin;
            copy_rows(tile, shape.v_width, c.v_dim, count, values + (begin - base));
            each_rows([&](int64_t r, int64_t n) {
                int64_t depth = least(count, seen_last(r + n - 1) - begin);
                products<ROWS, true>(n, shape.v_width, scores + r * SPLIT + (begin - base), SPLIT, tile,
                                     shape.v_width, depth, sum + r * shape.v_width, shape.v_width);
            });
        }
        for (int64_t r = 0; r < rows; r++)
            fold(state, r, peak[r], total[r], sum + r * shape.v_width, shape.v_width);
    }

    void finish() {
        for (int64_t r = 0; r < rows; r++) {
            int64_t head = item.head * shape.group + r % shape.group;
            int64_t row = c.starts[item.sequence] + item.first + r / shape.group;
            if (c.sinks) fold(state, r, c.sinks[head], 1, nullptr, shape.v_width);
            T *to = static_cast<T *>(c.out) + (row * c.heads + head) * c.v_dim;
            const float *from = state.sum + r * shape.v_width;
            float factor = 1 / state.total[r];
            int64_t d = 0;
            for (; d + LANES <= c.v_dim; d += LANES) store(to + d, load(from + d) * factor);
            if (d < c.v_dim) {
                T rest[LANES];
                store(rest, load(from + d) * factor);
                std::memcpy(to + d, rest, sizeof(T) * (c.v_dim - d));
            }
        }
    }
};

template <class Visit>
void each_block(const Call &c, const Shape &shape, const Visit &visit) {
    for (int64_t s = 0; s < c.sequences; s++) {
        int64_t count = c.starts[s + 1] - c.starts[s], past = c.lengths[s] - count;
        for (int64_t first = 0; first < count; first += shape.queries) {
            Item item{s, 0, first, least(shape.queries, count - first), 0, 0, 0, 1, 0};
            int64_t seen = c.window ? most(0, past + first + 1 - c.window) : 0;
            item.split = seen / SPLIT;
            item.splits = (past + first + item.queries - 1) / SPLIT + 1 - item.split;
            for (item.head = 0; item.head < c.kv_heads; item.head++) visit(item);
        }
    }
}

struct Size {
    int64_t work = 0, items = 0, states = 0, greatest = 0;  // of a block that is not spread
};

Size size_of(const Call &c, const Shape &shape) {
    Size size;
    each_block(c, shape, [&](const Item &i) { size.work += i.queries * i.splits; });
    size.greatest = c.threads > 1 ? size.work / (BLOCKS_EACH * c.threads) : size.work;
    each_block(c, shape, [&](const Item &i) {
        bool spread = i.splits > 1 && i.queries * i.splits > size.greatest;
        size.items += spread ? i.splits : 1;
        size.states += spread ? i.splits : 0;
    });
    return size;
}

void list_items(const Call &c, const Shape &shape, const Size &size, Item *items) {
    int64_t state = 0;
    each_block(c, shape, [&](const Item &block) {
        if (block.splits == 1 || block.queries * block.splits <= size.greatest) {
            *items++ = block;
            return;
        }
        for (int64_t i = 0; i < block.splits; i++) {
            Item part = block;
            part.split += i, part.splits = 1, part.part = i, part.parts = block.splits, part.state = state++;
            *items++ = part;
        }
    });
}

template <class T>
void write_rows(const Call &c, int64_t row) {
    for (int64_t h = 0; h < c.kv_heads; h++) {
        int64_t at = c.slots[row] * c.kv_heads + h;
        std::memcpy(static_cast<T *>(c.keys) + at * c.k_dim,
                    static_cast<const T *>(c.key) + row * c.key_row + h * c.key_head, sizeof(T) * c.k_dim);
        std::memcpy(static_cast<T *>(c.values) + at * c.v_dim,
                    static_cast<const T *>(c.value) + row * c.value_row + h * c.value_head, sizeof(T) * c.v_dim);
    }
}

}  // namespace

extern "C" int omp_get_thread_num(void);

namespace {

template <class T>
void run(const Call &c, const Shape &shape, const Size &size) {
    Item *items = reinterpret_cast<Item *>(c.scratch);
    float *states = reinterpret_cast<float *>(c.scratch + up(sizeof(Item) * size.items, 64));
    float *works = states + size.states * shape.state_numbers();
    list_items(c, shape, size, items);
    int64_t read = size.work * c.kv_heads * SPLIT * (c.k_dim + c.v_dim);
#pragma omp parallel num_threads(c.threads) if (c.threads > 1 && read >= LEAST)
    {
        float *work = works + omp_get_thread_num() * shape.work_numbers(c);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < c.tokens; row++) write_rows<T>(c, row);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < size.items; i++) {
            bool alone = items[i].parts == 1;
            Block<T> block(c, shape, items[i], work,
                           alone ? nullptr : states + items[i].state * shape.state_numbers());
            block.run();
            if (alone) block.finish();
        }
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < size.items; i++) {
            if (items[i].parts == 1 || items[i].part > 0) continue;
            Block<T> block(c, shape, items[i], work, nullptr);
            clear(block.state, block.rows, shape.v_width);
            for (int64_t part = 0; part < items[i].parts; part++) {
                State from(states + (items[i].state + part) * shape.state_numbers(), shape);
                for (int64_t r = 0; r < block.rows; r++)
                    fold(block.state, r, from.peak[r], from.total[r], from.sum + r * shape.v_width,
                         shape.v_width);
            }
            block.finish();
        }
    }
}

}  // namespace

// Returns 0, or, having done nothing, the bytes of scratch that it needs.
extern "C" int64_t paged_attention(const Call *call) {
    const Call &c = *call;
    Shape shape(c);
    Size size = size_of(c, shape);
    int64_t needed =
        up(sizeof(Item) * size.items, 64) +
        sizeof(float) * (size.states * shape.state_numbers() + c.threads * shape.work_numbers(c));
    if (needed > c.scratch_bytes) return needed;
    c.bfloat16 ? run<uint16_t>(c, shape, size) : run<float>(c, shape, size);
    return 0;
}
