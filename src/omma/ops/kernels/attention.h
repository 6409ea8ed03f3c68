// Attention of one head.
#pragma once

#include "tiles.h"

namespace {

// Up to 32 rows of a head, padded to whole tiles with zeros.
Operand gather(const bf16 *from, long ld, long n, long e, bf16 *to) {
    const long rows = std::min(n, 2 * ROWS);
    for (long r = 0; r < rows; r++) std::memcpy(to + r * e, from + r * ld, e * 2);
    std::memset(to + rows * e, 0, (2 * ROWS - rows) * e * 2);
    return {to, ROWS * e, DEPTH, e};
}

void scatter(const float *from, long n, long e, bf16 *to, long ld) {
    for (long r = 0; r < n; r++)
        for (long i = 0; i < e; i += 16) store(to + r * ld + i, 0xffff, _mm512_loadu_ps(from + r * e + i));
}

// x [rows, columns], its rows `ld` apart, for a product from the right: pairs of rows; or its transpose.
Operand right(const bf16 *x, long ld, long rows, long columns, bf16 *to) {
    const long depth = tiles(rows, DEPTH);
    for (long j = 0; j < columns / 16; j++)
        for (long k = 0; k < depth; k++)
            pack(x + k * DEPTH * ld + j * 16, ld, rows - k * DEPTH, 0xffff, to + (j * depth + k) * TILE, false);
    return {to, depth * TILE, TILE, DEPTH};
}

Operand right_turned(const bf16 *x, long ld, long rows, long columns, bf16 *to) {
    const long depth = columns / DEPTH;
    for (long j = 0; j < tiles(rows, 16); j++)
        for (long k = 0; k < depth; k++)
            pack_turned(x + j * 16 * ld + k * DEPTH, ld, rows - j * 16, to + (j * depth + k) * TILE);
    return {to, depth * TILE, TILE, DEPTH};
}

// The transpose of x [rows, columns] for a product from the left.
Operand left_turned(const bf16 *x, long rows, long columns, bf16 *to) {
    const long depth = tiles(rows, DEPTH);
    for (long j = 0; j < tiles(columns, 16); j++)
        for (long k = 0; k < depth; k++)
            pack(x + k * DEPTH * columns + j * 16, columns, rows - k * DEPTH, 0xffff, to + (j * depth + k) * TILE,
                 true);
    return {to, depth * TILE, TILE, DEPTH};
}

// Attention of a head's n tokens with themselves: of qkv, queries, keys and values d numbers apart and rows 3 d, to
// out, rows d apart; e a multiple of 32. log_sum [n]: of each query, the logarithm to base 2 of what its exponentials
// sum to; null: not wanted. 32 queries at a time, whose scores stay in the first cache.
void attend_head(long n, long d, long e, const bf16 *qkv, bf16 *out, float *log_sum) {
    const long wide = padded(n, 32), nt = tiles(n, 16), most_rows = 2 * ROWS;
    const Vec scale = all(LOG2_E / __builtin_sqrtf(e));
    static thread_local Scratch scratch;
    scratch.begin((2 * wide * e + most_rows * (e + wide)) * 2 + most_rows * (wide + e) * 4);
    bf16 *keys = scratch.take<bf16>(wide * e), *values = scratch.take<bf16>(wide * e);
    bf16 *q = scratch.take<bf16>(most_rows * e), *p = scratch.take<bf16>(most_rows * wide);
    float *s = scratch.take<float>(most_rows * wide), *o = scratch.take<float>(most_rows * e);
    const Operand k = right_turned(qkv + d, 3 * d, n, e, keys), v = right(qkv + 2 * d, 3 * d, n, e, values);
    for (long start = 0; start < n; start += most_rows) {
        const long rows = std::min(n - start, most_rows), rt = tiles(rows, 16);
        product(rt, nt, gather(qkv + start * 3 * d, 3 * d, rows, e, q), k, e / DEPTH, s, wide);
        float total[most_rows];
        for (long r = 0; r < rows; r++) { // weights, not yet divided by their sum
            const float *row = s + r * wide;
            Vec top = all(-3e38f), sum = _mm512_setzero_ps();
            for (long i = 0; i < n; i += 16)
                top = _mm512_max_ps(top, _mm512_mask_loadu_ps(all(-3e38f), first(n - i), row + i));
            const Vec most = _mm512_mul_ps(all(_mm512_reduce_max_ps(top)), scale);
            for (long i = 0; i < wide; i += 16) {
                Vec y = power_of_two(_mm512_fmsub_ps(_mm512_loadu_ps(row + i), scale, most));
                y = _mm512_maskz_mov_ps(first(n - i), y);
                sum = _mm512_add_ps(sum, y);
                store(p + r * wide + i, 0xffff, y);
            }
            total[r] = _mm512_reduce_add_ps(sum);
            if (log_sum) log_sum[start + r] = _mm512_cvtss_f32(most) + __builtin_log2f(total[r]);
        }
        std::memset(p + rows * wide, 0, (rt * 16 - rows) * wide * 2);
        product(rt, e / 16, {p, ROWS * wide, DEPTH, wide}, v, wide / DEPTH, o, e);
        for (long r = 0; r < rows; r++)
            for (long i = 0; i < e; i += 16)
                store(out + (start + r) * d + i, 0xffff,
                      _mm512_mul_ps(_mm512_loadu_ps(o + r * e + i), all(1 / total[r])));
    }
}

// The derivative by qkv, from that by out, which lie alike; weights are made anew and stand turned: a row for each
// key, 32 keys at a time.
void attend_head_backward(long n, long d, long e, const bf16 *dout, const bf16 *qkv, const bf16 *out,
                          const float *log_sum, bf16 *dqkv) {
    const long wide = padded(n, 32), nt = tiles(n, 16), et = e / 16, most_rows = 2 * ROWS;
    const float root = 1 / __builtin_sqrtf(e);
    static thread_local Scratch scratch;
    scratch.begin((5 * wide * e + 2 * most_rows * e + most_rows * wide + 2 * wide * wide) * 2 +
                  (2 * most_rows * wide + wide * e + 2 * wide) * 4);
    bf16 *packed[5];
    for (bf16 *&each : packed) each = scratch.take<bf16>(wide * e);
    bf16 *k = scratch.take<bf16>(most_rows * e), *v = scratch.take<bf16>(most_rows * e);
    bf16 *p = scratch.take<bf16>(most_rows * wide), *ds = scratch.take<bf16>(wide * wide);
    bf16 *turned = scratch.take<bf16>(wide * wide);
    float *s = scratch.take<float>(most_rows * wide), *dp = scratch.take<float>(most_rows * wide);
    float *sum = scratch.take<float>(wide * e), *less = scratch.take<float>(wide), *mean = scratch.take<float>(wide);
    const Operand qs = right(qkv, 3 * d, n, e, packed[0]), ks = right(qkv + d, 3 * d, n, e, packed[1]);
    const Operand gs = right(dout, d, n, e, packed[2]), gt = right_turned(dout, d, n, e, packed[3]);
    const Operand qt = right_turned(qkv, 3 * d, n, e, packed[4]);
    std::memset(less, 0, wide * 4);
    std::memset(mean, 0, wide * 4);
    std::memcpy(less, log_sum, n * 4);
    for (long r = 0; r < n; r++) { // of each query, the mean slope of its weights
        Vec slope = _mm512_setzero_ps();
        for (long i = 0; i < e; i += 16) slope = _mm512_fmadd_ps(get(dout + r * d + i), get(out + r * d + i), slope);
        mean[r] = _mm512_reduce_add_ps(slope);
    }
    for (long start = 0; start < n; start += most_rows) {
        const long rows = std::min(n - start, most_rows), rt = tiles(rows, 16);
        const bf16 *at = qkv + start * 3 * d;
        bf16 *to = dqkv + start * 3 * d, *slopes = ds + start * wide;
        product(rt, nt, gather(at + d, 3 * d, rows, e, k), qt, e / DEPTH, s, wide);
        product(rt, nt, gather(at + 2 * d, 3 * d, rows, e, v), gt, e / DEPTH, dp, wide);
        for (long r = 0; r < rows; r++)
            for (long i = 0; i < wide; i += 16) {
                Vec y = _mm512_loadu_ps(s + r * wide + i), z = _mm512_loadu_ps(dp + r * wide + i);
                y = _mm512_fmsub_ps(y, all(root * LOG2_E), _mm512_loadu_ps(less + i));
                y = _mm512_maskz_mov_ps(first(n - i), power_of_two(y));
                z = _mm512_mul_ps(_mm512_sub_ps(z, _mm512_loadu_ps(mean + i)), _mm512_mul_ps(y, all(root)));
                z = _mm512_maskz_mov_ps(first(n - i), z);
                store(p + r * wide + i, 0xffff, y);
                store(slopes + r * wide + i, 0xffff, z);
            }
        std::memset(p + rows * wide, 0, (rt * 16 - rows) * wide * 2);
        std::memset(slopes + rows * wide, 0, (rt * 16 - rows) * wide * 2);
        product(rt, et, {p, ROWS * wide, DEPTH, wide}, gs, wide / DEPTH, sum, e);
        scatter(sum, rows, e, to + 2 * d, 3 * d);
        product(rt, et, {slopes, ROWS * wide, DEPTH, wide}, qs, wide / DEPTH, sum, e);
        scatter(sum, rows, e, to + d, 3 * d);
    }
    product(nt, et, left_turned(ds, n, wide, turned), ks, wide / DEPTH, sum, e);
    scatter(sum, n, e, dqkv, 3 * d);
}

} // namespace
