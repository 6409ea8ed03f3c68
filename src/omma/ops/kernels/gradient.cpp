// The gradients of a linear layer's weight and bias.
#include "tiles.h"

namespace {

// A matrix [n, width] as columns by columns it is taken from: in rows or, where width allows, in squares of 32 x 32
// numbers (branches.cpp); its GELU where `gelu` is given.
struct Source {
    const bf16 *from;
    long n, width;
    bool squared;
    const Gelu *gelu;

    // Columns 32 v and on of rows 32 k and on as two tiles, `apart` numbers apart, their columns in the order of
    // `column_of`; adds the columns' sums, in the same order, to `sum`.
    void pack_pair(long k, long v, bf16 *to, long apart, bool turned, float *sum) const {
        const long row = k * DEPTH, rows = n - row, ld = squared ? 32 : width;
        const bf16 *at = from + row * width + v * 32 * (squared ? DEPTH : 1);
        const __mmask32 m = width - v * 32 >= 32 ? ~0u : (1u << (width - v * 32)) - 1;
        alignas(64) bf16 square[32 * DEPTH];
        if (gelu) {
            const Gelu f = *gelu; // its table in registers
            for (long r = 0; r < std::min(rows, DEPTH); r++)
                put(square + r * 32, f(get(at + r * 32)), f(get(at + r * 32 + 16)));
            at = square;
        }
        const auto line = [=](long r) {
            return r < rows ? _mm512_maskz_loadu_epi16(m, at + r * ld) : _mm512_setzero_si512();
        };
        const __m512bh ones = reinterpret_cast<__m512bh>(_mm512_set1_epi16(0x3f80));
        __m512i first[16], second[16];
        Vec s[2] = {};
        for (long i = 0; i < 16; i++) {
            const __m512i one = line(2 * i), other = line(2 * i + 1);
            first[i] = _mm512_unpacklo_epi16(one, other);
            second[i] = _mm512_unpackhi_epi16(one, other);
            if (sum) {
                s[0] = _mm512_dpbf16_ps(s[0], reinterpret_cast<__m512bh>(first[i]), ones);
                s[1] = _mm512_dpbf16_ps(s[1], reinterpret_cast<__m512bh>(second[i]), ones);
            }
        }
        for (long t = 0; t < 2 && sum; t++)
            _mm512_storeu_ps(sum + t * 16, _mm512_add_ps(_mm512_loadu_ps(sum + t * 16), s[t]));
        if (turned) transpose(first), transpose(second);
        for (long i = 0; i < 16; i++) {
            _mm512_store_si512(to + i * DEPTH, first[i]);
            _mm512_store_si512(to + apart + i * DEPTH, second[i]);
        }
    }
};

// Which of a pair's 32 columns stands at place i: interleaving rows by lanes of 8 numbers leaves them in fours.
long column_of(long i) { return i % 16 / 4 * 8 + i / 16 * 4 + i % 4; }

void write_sums(const float *sums, bf16 *to, long count) {
    for (long i = 0; i < 32; i++)
        if (column_of(i) < count) store(to + column_of(i), 1, all(sums[i]));
}

// A square of the product, or its transpose, to rows `top` and on and columns `at` and on of dw [o, i].
void write(const float *c, long ld, bool turned, bf16 *dw, long o, long i, long top, long at) {
    const __mmask32 m = i - at >= 32 ? ~0u : (1u << (i - at)) - 1;
    const __m512i in_order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0); // fours of a row by their columns
    for (long half = 0; half < 32; half += 16) {
        __m512i low[16], high[16];
        for (long k = 0; k < 16; k++) {
            low[k] = _mm512_loadu_si512(turned ? c + k * ld + half : c + (half + k) * ld);
            high[k] = _mm512_loadu_si512(turned ? c + (16 + k) * ld + half : c + (half + k) * ld + 16);
        }
        if (turned) transpose(low), transpose(high);
        for (long k = 0; k < 16; k++) {
            const long row = top + column_of(half + k);
            const __m512bh both = _mm512_cvtne2ps_pbh(_mm512_castsi512_ps(high[k]), _mm512_castsi512_ps(low[k]));
            const __m512i line = _mm512_permutexvar_epi64(in_order, reinterpret_cast<__m512i>(both));
            if (row < o) _mm512_mask_storeu_epi16(dw + row * i + at, m, line);
        }
    }
}

} // namespace

extern "C" {

// dw [o, i] = g^T x and db [o] = the sums of g, of g [n, o] and x [n, i]; db may be null. which: 1 if g, 2 if x is in
// squares; 4 if GELU(x), in squares, stands for x. The narrower is packed once for all threads; who is free takes the
// next columns of the wider, and their part of dw stays in its cache.
void weight_gradient(long n, long o, long i, const bf16 *g, const bf16 *x, long which, bf16 *dw, bf16 *db,
                     int threads) {
    constexpr long MOST = 20;         // tiles along the sum at a time: two columns of them fit the first cache
    constexpr long PACKED = 4;        // of them that a thread packs at a time
    constexpr long SUMMED = 1L << 16; // numbers of dw that a thread sums at a time
    const Gelu gelu;
    const Source of_g{g, n, o, (which & 1) != 0, nullptr}, of_x{x, n, i, (which & 6) != 0, which & 4 ? &gelu : nullptr};
    const bool swap = o > i; // the narrower stands at the left, turned
    const Source &left = swap ? of_x : of_g, &right = swap ? of_g : of_x;
    const long mt = tiles(left.width, 32) * 2, pairs = tiles(right.width, 32);
    const long depth = tiles(n, DEPTH), steps = tiles(depth, std::max(1L, tiles(depth, MOST))),
               parts = std::max(1L, tiles(depth, PACKED));
    const long share = std::clamp(SUMMED / (mt * 512), 1L, std::max(1L, pairs / 8)), ld = share * 32;
    static thread_local Scratch common;
    common.begin(mt * depth * TILE * 2 + parts * mt * 16 * 4 + 128);
    bf16 *a = common.take<bf16>(mt * depth * TILE);
    float *sums = common.take<float>(parts * mt * 16);
    std::memset(sums, 0, parts * mt * 16 * 4);
#pragma omp parallel num_threads(threads)
    {
        Unit unit;
        static thread_local Scratch scratch;
        scratch.begin(2 * steps * TILE * 2 + (mt * 16 + 1) * ld * 4 + 192);
        bf16 *b = scratch.take<bf16>(2 * steps * TILE);
        float *c = scratch.take<float>(mt * 16 * ld), *beside = scratch.take<float>(ld);
#pragma omp for schedule(dynamic)
        for (long part = 0; part < parts; part++)
            for (long u = 0; u < mt; u += 2)
                for (long k = part * PACKED; k < std::min(depth, (part + 1) * PACKED); k++) {
                    const long before = k / steps * steps, high = std::min(steps, depth - before);
                    left.pack_pair(k, u / 2, a + (before * mt + u * high + k - before) * TILE, high * TILE, true,
                                   db && !swap ? sums + (part * mt + u) * 16 : nullptr);
                }
#pragma omp for schedule(dynamic)
        for (long from = 0; from < pairs; from += share) {
            const long to = std::min(pairs, from + share);
            std::memset(beside, 0, ld * 4);
            if (n == 0) std::memset(c, 0, mt * 16 * ld * 4);
            for (long start = 0; start < depth; start += steps) {
                const long high = std::min(steps, depth - start);
                for (long v = from; v < to; v++) {
                    for (long k = 0; k < high; k++)
                        right.pack_pair(start + k, v, b + k * TILE, high * TILE, false,
                                        db && swap ? beside + (v - from) * 32 : nullptr);
                    for (long u = 0; u < mt; u += 2)
                        block<2, 2>({a + (start * mt + u * high) * TILE, high * TILE, TILE, DEPTH},
                                    {b, high * TILE, TILE, DEPTH}, high, c + u * 16 * ld + (v - from) * 32, ld,
                                    start > 0);
                }
            }
            for (long u = 0; u < mt / 2; u++)
                for (long v = from; v < to; v++)
                    write(c + u * 32 * ld + (v - from) * 32, ld, swap, dw, o, i, (swap ? v : u) * 32,
                          (swap ? u : v) * 32);
            for (long v = from; v < to && db && swap; v++)
                write_sums(beside + (v - from) * 32, db + v * 32, o - v * 32);
        }
    }
    for (long u = 0; u < mt / 2 && db && !swap; u++) {
        float *sum = sums + u * 32;
        for (long part = 1; part < parts; part++)
            for (long k = 0; k < 32; k++) sum[k] += sum[part * mt * 16 + k];
        write_sums(sum, db + u * 32, o - u * 32);
    }
}
}
