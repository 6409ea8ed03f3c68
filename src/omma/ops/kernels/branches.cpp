// The two branches of a pre-norm transformer block, each as a whole: a thread takes some samples through all of it, so
// that what is between the layers stays in its cache. Widths are multiples of 32.
#include "attention.h"
#include "rows.h"

#include <vector>

namespace {

constexpr long SIDE = 2 * ROWS; // of the squares that products are made in

// A weight [o, i] packed for products from the right: x w^T if `turned`, else x w.
struct Weight {
    const bf16 *from;
    long o, i;
    bool turned;
    bf16 *at;

    long inner() const { return (turned ? i : o) / DEPTH; }
    long columns() const { return turned ? o : i; }

    // By all threads together; they do not wait for each other.
    void pack_all() const {
        const long depth = inner();
#pragma omp for schedule(dynamic, std::max(1L, 64 / depth)) nowait
        for (long j = 0; j < columns() / 16; j++)
            for (long k = 0; k < depth; k++) {
                bf16 *to = at + (j * depth + k) * TILE;
                if (turned)
                    pack_turned(from + j * 16 * i + k * DEPTH, i, 16, to);
                else
                    pack(from + k * DEPTH * i + j * 16, i, DEPTH, 0xffff, to, false);
            }
    }
};

void pack_both(const Weight &one, const Weight &other) {
    one.pack_all();
    other.pack_all();
#pragma omp barrier
}

// Rows that products are made of. They lie one after another, or 32 columns of 32 rows at a time in squares.
Operand in_rows(const bf16 *at, long width) { return {at, ROWS * width, DEPTH, width}; }
Operand in_squares(const bf16 *at) { return {at, ROWS * SIDE, SIDE * SIDE, SIDE}; }

// Rows [rows, 32 depth] times a weight, in squares of 32 x 32 numbers. `finish` is given a square, its first row and
// column, and how many of its rows are wanted. Reads whole squares of the rows.
template <class Finish> void multiply(long rows, Operand a, const Weight &w, float *squares, Finish finish) {
    constexpr long CACHED = 1 << 18; // numbers of the weight that several rows are multiplied by in turn
    const long depth = w.inner(), panel = SIDE * DEPTH * depth, panels = w.columns() / SIDE;
    const long group = std::max(1L, CACHED / panel);
    for (long start = 0; start < panels; start += group)
        for (long row = 0; row < rows; row += SIDE) {
            const Operand left{a.at + row * DEPTH * depth, a.across, a.along, a.row};
            const long end = std::min(panels, start + group), count = std::min(SIDE, rows - row);
            for (long j = start; j <= end; j++) { // one is written while the next is multiplied
                float *now = squares + j % 2 * SIDE * SIDE, *before = squares + (j + 1) % 2 * SIDE * SIDE;
                if (j < end)
                    block(tiles(count, ROWS), 2, left, {w.at + j * panel, depth * TILE, TILE, DEPTH}, depth, now, SIDE,
                          false);
                if (j > start) finish(before, row, (j - 1) * SIDE, count);
            }
        }
}

// Half a row of a square, from its column `half` * 16 on.
Vec part(const float *square, long row, long half) { return _mm512_load_ps(square + row * SIDE + half * 16); }
Vec shift_of(const bf16 *bias, long column) { return bias ? get(bias + column) : _mm512_setzero_ps(); }

// Finishes a branch: y = (product + bias) * gamma + onto, where these are given.
struct Sum {
    const bf16 *bias, *gamma, *onto;
    bf16 *y;
    long d;

    void operator()(const float *square, long row, long column, long count) const {
        Vec b[2], s[2];
        for (long k = 0; k < 2; k++) {
            b[k] = shift_of(bias, column + 16 * k);
            s[k] = gamma ? get(gamma + column + 16 * k) : all(1);
        }
        for (long r = 0; r < count; r++) {
            const long at = (row + r) * d + column;
            Vec v[2];
            for (long k = 0; k < 2; k++) {
                v[k] = _mm512_mul_ps(_mm512_add_ps(part(square, r, k), b[k]), s[k]);
                if (onto) v[k] = _mm512_add_ps(v[k], get(onto + at + 16 * k));
            }
            put(y + at, v[0], v[1]);
        }
    }
};

// Keeps a product in fp32.
struct Kept {
    float *to;
    long d;

    void operator()(const float *square, long row, long column, long count) const {
        for (long r = 0; r < count; r++) std::memcpy(to + (row + r) * d + column, square + r * SIDE, SIDE * 4);
    }
};

template <class T> T *after(T *p, long count) { return p ? p + count : nullptr; }

// Rows for a thread to take at a time: whole squares, and enough parts to share.
long portion_of_rows(long n) { return std::clamp(n / 16 / SIDE * SIDE, SIDE, 8 * SIDE); }

struct Samples {
    long from, count, n; // first row, how many, and the length of each
};

// How many samples of n rows a thread takes at a time: few are badly shared, and what does not fill tiles is wasted.
long portion_of_samples(long b, long n) {
    const auto cost = [=](long each) { return padded(each * n, ROWS) / double(each * n) * (1 + 2. * each / b); };
    long best = 1;
    for (long each = 2; each <= b && each * n <= 8 * SIDE; each++)
        if (cost(each) < cost(best)) best = each;
    return best;
}

// Some samples of one length at a time; shapes: how many and how long, of each length.
std::vector<Samples> divided(long lengths, const long *shapes) {
    std::vector<Samples> parts;
    for (long l = 0, from = 0; l < lengths; l++) {
        const long b = shapes[2 * l], n = shapes[2 * l + 1], each = portion_of_samples(b, std::max(n, 1L));
        for (long x = 0; x < b; x += each) {
            const long count = std::min(each, b - x);
            parts.push_back({from, count, n});
            from += count * n;
        }
    }
    return parts;
}

long most_rows(const std::vector<Samples> &parts) {
    long most = 0;
    for (const Samples &p : parts) most = std::max(most, p.count * p.n);
    return padded(most, SIDE);
}

// The end of both backward passes: from the derivative `da` by the normalised rows.
struct Normalised {
    long d;
    const bf16 *x, *scale, *shift, *onto;
    const float *mean, *inverse;
    bf16 *dx, *again;

    void back(long from, long rows, const float *da, float *sums) const {
        normalise_backward(rows, d, da, x + from * d, scale, shift, mean + from, inverse + from, after(onto, from * d),
                           dx + from * d, again + from * d, sums, sums + d);
    }
};

} // namespace

extern "C" {

// y = onto + gamma * (GELU(norm(x) w1^T + b1) w2^T + b2) of x [n, d], w1 [h, d] and w2 [d, h]; gamma, onto and
// biases may be null. Keeps u, the GELU's argument, in squares, and the norm's statistics where they are given.
void mlp(long n, long d, long h, float eps, const bf16 *x, const bf16 *scale, const bf16 *shift, const bf16 *w1,
         const bf16 *b1, const bf16 *w2, const bf16 *b2, const bf16 *gamma, const bf16 *onto, bf16 *y, bf16 *u,
         float *mean, float *inverse, int threads) {
    const Gelu gelu;
    const long size = portion_of_rows(n);
    static thread_local Scratch common;
    common.begin(2 * d * h * 2);
    const Weight first_layer{w1, h, d, true, common.take<bf16>(d * h)};
    const Weight second_layer{w2, d, h, true, common.take<bf16>(d * h)};
#pragma omp parallel num_threads(threads)
    {
        Unit unit;
        static thread_local Scratch scratch;
        scratch.begin(size * (d + h) * 2 + 2 * SIDE * SIDE * 4);
        bf16 *a = scratch.take<bf16>(size * d), *g = scratch.take<bf16>(size * h);
        float *squares = scratch.take<float>(2 * SIDE * SIDE);
        pack_both(first_layer, second_layer);
#pragma omp for schedule(dynamic)
        for (long from = 0; from < n; from += size) {
            const long rows = std::min(size, n - from);
            normalise(rows, d, eps, x + from * d, scale, shift, a, after(mean, from), after(inverse, from));
            multiply(rows, in_rows(a, d), first_layer, squares,
                     [&](const float *square, long row, long column, long count) {
                         const Gelu f = gelu; // its table in registers
                         const Vec low = shift_of(b1, column), high = shift_of(b1, column + 16);
                         for (long r = 0; r < count; r++) {
                             const Vec v = _mm512_add_ps(part(square, r, 0), low),
                                       w = _mm512_add_ps(part(square, r, 1), high);
                             if (u) put(u + (from + row) * h + (column + r) * SIDE, v, w);
                             put(g + row * h + (column + r) * SIDE, f(v), f(w));
                         }
                     });
            multiply(rows, in_squares(g), second_layer, squares,
                     Sum{b2, gamma, after(onto, from * d), y + from * d, d});
        }
    }
}

// From dy the derivatives by x, u, scale and shift; also, for the first layer's gradients, the normalised rows,
// `again`. u and du are in squares. w2 comes with gamma multiplied in. onto is dy, or null.
void mlp_backward(long n, long d, long h, const bf16 *dy, const bf16 *x, const bf16 *scale, const bf16 *shift,
                  const float *mean, const float *inverse, const bf16 *u, const bf16 *w1, const bf16 *w2,
                  const bf16 *onto, bf16 *dx, bf16 *du, bf16 *again, bf16 *dscale, bf16 *dshift, int threads) {
    const GeluSlope slope;
    const long size = portion_of_rows(n), parts = tiles(n, size);
    static thread_local Scratch common;
    common.begin(2 * d * h * 2 + parts * 2 * d * 4);
    const Weight first_layer{w1, h, d, false, common.take<bf16>(d * h)};
    const Weight second_layer{w2, d, h, false, common.take<bf16>(d * h)};
    float *sums = common.take<float>(parts * 2 * d);
    std::memset(sums, 0, parts * 2 * d * 4);
    const Normalised norm{d, x, scale, shift, onto, mean, inverse, dx, again};
#pragma omp parallel num_threads(threads)
    {
        Unit unit;
        static thread_local Scratch scratch;
        scratch.begin(size * d * 6 + 2 * SIDE * SIDE * 4);
        bf16 *grad = scratch.take<bf16>(size * d);
        float *da = scratch.take<float>(size * d), *squares = scratch.take<float>(2 * SIDE * SIDE);
        pack_both(first_layer, second_layer);
#pragma omp for schedule(dynamic)
        for (long each = 0; each < parts; each++) {
            const long from = each * size, rows = std::min(size, n - from);
            std::memcpy(grad, dy + from * d, rows * d * 2);
            multiply(rows, in_rows(grad, d), second_layer, squares,
                     [&](const float *square, long row, long column, long count) {
                         const GeluSlope f = slope; // its table in registers
                         for (long r = 0; r < count; r++) {
                             const long at = (from + row) * h + (column + r) * SIDE;
                             const Vec v = get(u + at), w = get(u + at + 16);
                             put(du + at, _mm512_mul_ps(part(square, r, 0), f(v)),
                                 _mm512_mul_ps(part(square, r, 1), f(w)));
                         }
                     });
            multiply(rows, in_squares(du + from * h), first_layer, squares, Kept{da, d});
            norm.back(from, rows, da, sums + each * 2 * d);
        }
    }
    total(parts, d, d, sums, dscale, dshift);
}

// y = onto + gamma * (attention(norm(x) w1^T + b1) w2^T + b2) of x [t, d], w1 [3 d, d] and w2 [d, d]: of each of the
// sequences whose `shapes` are given (how many and how long, of each length) with itself. gamma, onto and biases may
// be null. Keeps qkv, attention's result `out` (which has room for 31 rows more), log_sum and the norm's statistics
// where they are given.
void mix(long lengths, const long *shapes, long d, long heads, float eps, const bf16 *x, const bf16 *scale,
         const bf16 *shift, const bf16 *w1, const bf16 *b1, const bf16 *w2, const bf16 *b2, const bf16 *gamma,
         const bf16 *onto, bf16 *y, bf16 *qkv, bf16 *out, float *log_sum, float *mean, float *inverse, int threads) {
    const std::vector<Samples> parts = divided(lengths, shapes);
    const long size = most_rows(parts), e = d / heads;
    static thread_local Scratch common;
    common.begin(4 * d * d * 2);
    const Weight first_layer{w1, 3 * d, d, true, common.take<bf16>(3 * d * d)};
    const Weight second_layer{w2, d, d, true, common.take<bf16>(d * d)};
#pragma omp parallel num_threads(threads)
    {
        Unit unit;
        static thread_local Scratch scratch;
        scratch.begin(size * 4 * d * 2 + 2 * SIDE * SIDE * 4);
        bf16 *a = scratch.take<bf16>(size * d), *own = scratch.take<bf16>(size * 3 * d);
        float *squares = scratch.take<float>(2 * SIDE * SIDE);
        pack_both(first_layer, second_layer);
#pragma omp for schedule(dynamic)
        for (std::size_t each = 0; each < parts.size(); each++) {
            const auto [from, count, n] = parts[each];
            const long rows = count * n;
            bf16 *q = qkv ? qkv + from * 3 * d : own, *mixed = out ? out + from * d : a;
            normalise(rows, d, eps, x + from * d, scale, shift, a, after(mean, from), after(inverse, from));
            multiply(rows, in_rows(a, d), first_layer, squares,
                     [&](const float *square, long row, long column, long count) {
                         const Vec low = shift_of(b1, column), high = shift_of(b1, column + 16);
                         for (long r = 0; r < count; r++)
                             put(q + (row + r) * 3 * d + column, _mm512_add_ps(part(square, r, 0), low),
                                 _mm512_add_ps(part(square, r, 1), high));
                     });
            for (long s = 0; s < count; s++)
                for (long h = 0; h < heads; h++)
                    attend_head(n, d, e, q + s * n * 3 * d + h * e, mixed + s * n * d + h * e,
                                after(log_sum, from * heads + (s * heads + h) * n));
            multiply(rows, in_rows(mixed, d), second_layer, squares,
                     Sum{b2, gamma, after(onto, from * d), y + from * d, d});
        }
    }
}

// From dy the derivatives by x, qkv, scale and shift; also, for the weights' gradients, the normalised rows. w2 comes
// with gamma multiplied in. dqkv has room for 31 rows more; onto is dy, or null.
void mix_backward(long lengths, const long *shapes, long d, long heads, const bf16 *dy, const bf16 *x,
                  const bf16 *scale, const bf16 *shift, const float *mean, const float *inverse, const bf16 *qkv,
                  const bf16 *out, const float *log_sum, const bf16 *w1, const bf16 *w2, const bf16 *onto, bf16 *dx,
                  bf16 *dqkv, bf16 *again, bf16 *dscale, bf16 *dshift, int threads) {
    const std::vector<Samples> parts = divided(lengths, shapes);
    const long size = most_rows(parts), e = d / heads, count_of_parts = parts.size();
    static thread_local Scratch common;
    common.begin(4 * d * d * 2 + count_of_parts * 2 * d * 4);
    const Weight first_layer{w1, 3 * d, d, false, common.take<bf16>(3 * d * d)};
    const Weight second_layer{w2, d, d, false, common.take<bf16>(d * d)};
    float *sums = common.take<float>(count_of_parts * 2 * d);
    std::memset(sums, 0, count_of_parts * 2 * d * 4);
    const Normalised norm{d, x, scale, shift, onto, mean, inverse, dx, again};
#pragma omp parallel num_threads(threads)
    {
        Unit unit;
        static thread_local Scratch scratch;
        scratch.begin(size * d * 8 + 2 * SIDE * SIDE * 4);
        bf16 *grad = scratch.take<bf16>(size * d), *dout = scratch.take<bf16>(size * d);
        float *da = scratch.take<float>(size * d), *squares = scratch.take<float>(2 * SIDE * SIDE);
        pack_both(first_layer, second_layer);
#pragma omp for schedule(dynamic)
        for (long each = 0; each < count_of_parts; each++) {
            const auto [from, count, n] = parts[each];
            const long rows = count * n;
            std::memcpy(grad, dy + from * d, rows * d * 2);
            multiply(rows, in_rows(grad, d), second_layer, squares,
                     [&](const float *square, long row, long column, long count) {
                         for (long r = 0; r < count; r++)
                             put(dout + (row + r) * d + column, part(square, r, 0), part(square, r, 1));
                     });
            for (long s = 0; s < count; s++)
                for (long h = 0; h < heads; h++) {
                    const long row = from + s * n, at = row * d + h * e, wide = row * 3 * d + h * e;
                    attend_head_backward(n, d, e, dout + s * n * d + h * e, qkv + wide, out + at,
                                         log_sum + from * heads + (s * heads + h) * n, dqkv + wide);
                }
            multiply(rows, in_rows(dqkv + from * 3 * d, 3 * d), first_layer, squares, Kept{da, d});
            norm.back(from, rows, da, sums + each * 2 * d);
        }
    }
    total(count_of_parts, d, d, sums, dscale, dshift);
}
}
