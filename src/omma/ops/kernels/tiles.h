// Products of tiles of 16 x 32 numbers: by the matrix unit, or by AVX-512's products of pairs of bf16.
#pragma once

#include "vectors.h"

namespace {

// Rows of 16 numbers of 4 bytes become columns.
void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}

// 16 columns of 32 rows as a tile that is multiplied from the right: pairs of rows side by side.
// `turned`: as one that is multiplied from the left, the columns as its rows. Adds the columns' sums to `sum`.
void pack(const bf16 *from, long ld, long rows, __mmask16 columns, bf16 *to, bool turned, float *sum = nullptr) {
    __m512i r[16];
    Vec s = _mm512_setzero_ps();
    for (long i = 0; i < 16; i++) {
        __m512i low = 2 * i < rows ? raw(from + 2 * i * ld, columns) : _mm512_setzero_si512();
        __m512i high = 2 * i + 1 < rows ? raw(from + (2 * i + 1) * ld, columns) : _mm512_setzero_si512();
        high = _mm512_slli_epi32(high, 16);
        if (sum) {
            s = _mm512_add_ps(s, _mm512_castsi512_ps(high));
            s = _mm512_add_ps(s, _mm512_castsi512_ps(_mm512_slli_epi32(low, 16)));
        }
        r[i] = _mm512_or_si512(low, high);
    }
    if (sum) _mm512_storeu_ps(sum, _mm512_add_ps(_mm512_loadu_ps(sum), s));
    if (turned) transpose(r);
    for (long i = 0; i < 16; i++) _mm512_store_si512(to + i * DEPTH, r[i]);
}

// 32 columns of 16 rows as a tile that is multiplied from the right as their transpose.
void pack_turned(const bf16 *from, long ld, long rows, bf16 *to) {
    __m512i r[16];
    for (long i = 0; i < 16; i++) r[i] = i < rows ? _mm512_loadu_si512(from + i * ld) : _mm512_setzero_si512();
    transpose(r);
    for (long i = 0; i < 16; i++) _mm512_store_si512(to + i * DEPTH, r[i]);
}

// Where the tiles of an operand lie: from one to the next along its rows (or columns), and along the sum; its
// rows apart. All in numbers.
struct Operand {
    const bf16 *at;
    long across, along, row;
};

#ifdef __AMX_BF16__

struct alignas(64) Shapes {
    std::uint8_t palette = 1, start = 0, reserved[14] = {};
    std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The unit is set up for a thread's tiles while one lives.
struct Unit {
    Unit() {
        static const Shapes shapes;
        _tile_loadconfig(&shapes);
    }
    ~Unit() { _tile_release(); }
};

// Up to 2 x 2 tiles of C (+)= A B.
template <int M, int N> void block(const Operand &a, const Operand &b, long depth, float *c, long ld, bool add) {
    const long stride = ld * 4;
    if (add) {
        _tile_loadd(0, c, stride);
        if constexpr (N > 1) _tile_loadd(1, c + 16, stride);
        if constexpr (M > 1) _tile_loadd(2, c + 16 * ld, stride);
        if constexpr (M > 1 && N > 1) _tile_loadd(3, c + 16 * ld + 16, stride);
    } else {
        _tile_zero(0);
        if constexpr (N > 1) _tile_zero(1);
        if constexpr (M > 1) _tile_zero(2);
        if constexpr (M > 1 && N > 1) _tile_zero(3);
    }
    for (long k = 0; k < depth; k++) {
        _tile_loadd(4, a.at + k * a.along, a.row * 2);
        _tile_loadd(6, b.at + k * b.along, b.row * 2);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (N > 1) {
            _tile_loadd(7, b.at + b.across + k * b.along, b.row * 2);
            _tile_dpbf16ps(1, 4, 7);
        }
        if constexpr (M > 1) {
            _tile_loadd(5, a.at + a.across + k * a.along, a.row * 2);
            _tile_dpbf16ps(2, 5, 6);
            if constexpr (N > 1) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, c, stride);
    if constexpr (N > 1) _tile_stored(1, c + 16, stride);
    if constexpr (M > 1) _tile_stored(2, c + 16 * ld, stride);
    if constexpr (M > 1 && N > 1) _tile_stored(3, c + 16 * ld + 16, stride);
}

#else

struct Unit {}; // the vector units need no setting up

constexpr long STRIP = 8; // rows whose sums fit the registers

// STRIP rows by N tiles of 16 columns.
template <int N>
void strip(const bf16 *a, const Operand &left, const Operand &right, long depth, float *c, long ld, bool add) {
    Vec sum[STRIP][N];
    for (long r = 0; r < STRIP; r++)
        for (long j = 0; j < N; j++) sum[r][j] = add ? _mm512_loadu_ps(c + r * ld + j * ROWS) : _mm512_setzero_ps();
    for (long k = 0; k < depth; k++)
        for (long i = 0; i < ROWS; i++) {
            const bf16 *b = right.at + k * right.along + i * right.row;
            __m512bh pairs[N];
            for (long j = 0; j < N; j++)
                pairs[j] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b + j * right.across));
#pragma GCC unroll 8
            for (long r = 0; r < STRIP; r++) {
                std::int32_t pair;
                std::memcpy(&pair, a + k * left.along + r * left.row + 2 * i, 4);
                const __m512bh both = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
                for (long j = 0; j < N; j++) sum[r][j] = _mm512_dpbf16_ps(sum[r][j], both, pairs[j]);
            }
        }
    for (long r = 0; r < STRIP; r++)
        for (long j = 0; j < N; j++) _mm512_storeu_ps(c + r * ld + j * ROWS, sum[r][j]);
}

// Up to 2 x 2 tiles of C (+)= A B.
template <int M, int N> void block(const Operand &a, const Operand &b, long depth, float *c, long ld, bool add) {
    for (long m = 0; m < M; m++)
        for (long r = 0; r < ROWS; r += STRIP)
            strip<N>(a.at + m * a.across + r * a.row, a, b, depth, c + (m * ROWS + r) * ld, ld, add);
}

#endif

void block(long m, long n, Operand a, Operand b, long depth, float *c, long ld, bool add) {
    if (m > 1)
        n > 1 ? block<2, 2>(a, b, depth, c, ld, add) : block<2, 1>(a, b, depth, c, ld, add);
    else
        n > 1 ? block<1, 2>(a, b, depth, c, ld, add) : block<1, 1>(a, b, depth, c, ld, add);
}

// C = A B of m x n tiles.
void product(long m, long n, const Operand &a, const Operand &b, long depth, float *c, long ld) {
    for (long i = 0; i < m; i += 2)
        for (long j = 0; j < n; j += 2)
            block(m - i, n - j, {a.at + i * a.across, a.across, a.along, a.row},
                  {b.at + j * b.across, b.across, b.along, b.row}, depth, c + (i * ld + j) * ROWS, ld, false);
}

} // namespace
