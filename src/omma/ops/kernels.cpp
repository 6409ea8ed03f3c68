// Kernels in bf16 for x86 processors with AVX-512 and AMX: what a transformer's training step does between and
// behind its large products. Sums, exponentials and statistics are fp32; what is stored is rounded once.
// Called through ctypes with plain pointers (native.py), compiled on the machine that uses them.

#include <immintrin.h>
#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

using bf16 = std::uint16_t;
using Vec = __m512;

namespace {

constexpr long ROWS = 16;           // of an AMX tile, and lanes of a vector of fp32
constexpr long DEPTH = 32;          // bf16 numbers in a row of a tile
constexpr long TILE = ROWS * DEPTH; // numbers in a tile, 1 KiB

long tiles(long n, long size) { return (n + size - 1) / size; }
long padded(long n, long size) { return tiles(n, size) * size; }

// How much a thread takes at a time of what need not be divided evenly: other users of a core slow one thread down.
long portion(long n) { return std::max(1L, n / 32); }

// Memory that a thread keeps from call to call.
class Scratch {
    struct Free {
        void operator()(char *p) const { ::operator delete[](p, std::align_val_t(64)); }
    };
    std::unique_ptr<char, Free> memory;
    std::size_t size = 0, used = 0;

  public:
    void begin(std::size_t bytes) {
        used = 0;
        if (bytes <= size) return;
        memory.reset();
        memory.reset(static_cast<char *>(::operator new[](bytes, std::align_val_t(64))));
        size = bytes;
    }
    template <class T> T *take(long count) {
        T *p = reinterpret_cast<T *>(memory.get() + used);
        used += padded(count * sizeof(T), 64);
        return p;
    }
};

// ---------------------------------------------------------------- vectors
constexpr float LOG2_E = 1.44269504f;

__mmask16 first(long n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : static_cast<__mmask16>((1u << n) - 1); }

__m512i raw(const bf16 *p, __mmask16 m) { return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, p)); }
Vec load(const bf16 *p, __mmask16 m) { return _mm512_castsi512_ps(_mm512_slli_epi32(raw(p, m), 16)); }
void store(bf16 *p, __mmask16 m, Vec v) {
    _mm256_mask_storeu_epi16(p, m, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
}
Vec all(float x) { return _mm512_set1_ps(x); }

// 2^x to a relative 3e-6; 0 far below.
Vec power_of_two(Vec x) {
    Vec n = _mm512_roundscale_ps(x, 0), r = _mm512_sub_ps(x, n), p = all(1.33335581e-3f);
    for (float c : {9.61812911e-3f, 5.55041087e-2f, .240226507f, .693147181f, 1.f}) p = _mm512_fmadd_ps(p, r, all(c));
    return _mm512_scalef_ps(p, n);
}

// A function of |x| by cubics on 32 pieces of [0, 6], to an absolute 2e-6; constant beyond.
class Pieces {
    static constexpr float PER_UNIT = 32.f / 6;
    Vec low[4], high[4];

  public:
    template <class Function> explicit Pieces(Function f) {
        float table[4][32];
        for (int piece = 0; piece < 32; piece++) {
            double y[4]; // at 0, 1/3, 2/3 and 1 of the piece
            for (int i = 0; i < 4; i++) y[i] = f((piece + i / 3.) / PER_UNIT);
            table[0][piece] = y[0];
            table[1][piece] = (-11 * y[0] + 18 * y[1] - 9 * y[2] + 2 * y[3]) / 2;
            table[2][piece] = 9 * (2 * y[0] - 5 * y[1] + 4 * y[2] - y[3]) / 2;
            table[3][piece] = 9 * (-y[0] + 3 * y[1] - 3 * y[2] + y[3]) / 2;
        }
        for (int c = 0; c < 4; c++) low[c] = _mm512_loadu_ps(table[c]), high[c] = _mm512_loadu_ps(table[c] + 16);
    }
    Vec operator()(Vec size) const {
        Vec u = _mm512_mul_ps(size, all(PER_UNIT));
        u = _mm512_min_ps(u, all(31.9999f));
        Vec floor = _mm512_roundscale_ps(u, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
        __m512i piece = _mm512_cvtps_epi32(floor);
        Vec r = _mm512_sub_ps(u, floor), y = _mm512_permutex2var_ps(low[3], piece, high[3]);
        for (int c = 2; c >= 0; c--) y = _mm512_fmadd_ps(y, r, _mm512_permutex2var_ps(low[c], piece, high[c]));
        return y;
    }
};

double below(double x) { return std::erfc(x / std::sqrt(2.)) / 2; } // the normal law's share below -x
double slope_below(double x) { return below(x) - x * std::exp(-x * x / 2) * 0.3989422804014327; } // GELU's at -x

// ---------------------------------------------------------------- tiles
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

// Where the tiles of an operand lie: from one to the next along its rows (or columns), and along the sum; its
// rows apart. All in numbers.
struct Operand {
    const bf16 *at;
    long across, along, row;
};

// Up to 2 x 2 tiles of C (+)= A B.
template <int M, int N>
void block(const Operand &a, const Operand &b, long depth, float *c, long ld, bool add) {
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

extern "C" {

// Asks Linux for the use of tiles; 0 where it is granted.
long allowed() { return syscall(SYS_arch_prctl, 0x1023, 18); }

// y = x * (the normal law's share below x), n numbers.
void gelu(long n, const bf16 *x, bf16 *y, int threads) {
    const Pieces pieces(below);
#pragma omp parallel for num_threads(threads) schedule(dynamic, portion(n / 16))
    for (long i = 0; i < n; i += 16) {
        __mmask16 m = first(n - i);
        Vec v = load(x + i, m), size = _mm512_abs_ps(v);
        Vec part = _mm512_mul_ps(_mm512_min_ps(size, all(6.f)), pieces(size));
        store(y + i, m, _mm512_sub_ps(_mm512_max_ps(_mm512_setzero_ps(), v), part));
    }
}

// dx = dy times its slope.
void gelu_backward(long n, const bf16 *dy, const bf16 *x, bf16 *dx, int threads) {
    const Pieces pieces(slope_below);
#pragma omp parallel for num_threads(threads) schedule(dynamic, portion(n / 16))
    for (long i = 0; i < n; i += 16) {
        __mmask16 m = first(n - i);
        Vec v = load(x + i, m), slope = pieces(_mm512_abs_ps(v));
        __mmask16 positive = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_GE_OQ);
        slope = _mm512_mask_sub_ps(slope, positive, all(1.f), slope);
        store(dx + i, m, _mm512_mul_ps(load(dy + i, m), slope));
    }
}

// y = (x - mean) / deviation * scale + shift for each of n rows of d numbers; keeps both statistics.
void norm(long n, long d, float eps, const bf16 *x, const bf16 *scale, const bf16 *shift, bf16 *y, float *mean,
          float *inverse, int threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, portion(n))
    for (long r = 0; r < n; r++) {
        const bf16 *row = x + r * d;
        Vec s = _mm512_setzero_ps(), q = s;
        for (long i = 0; i < d; i += 16) s = _mm512_add_ps(s, load(row + i, first(d - i)));
        float mu = _mm512_reduce_add_ps(s) / d;
        for (long i = 0; i < d; i += 16) {
            Vec c = _mm512_maskz_sub_ps(first(d - i), load(row + i, first(d - i)), all(mu));
            q = _mm512_fmadd_ps(c, c, q);
        }
        float rho = 1 / __builtin_sqrtf(_mm512_reduce_add_ps(q) / d + eps);
        for (long i = 0; i < d; i += 16) {
            __mmask16 m = first(d - i);
            Vec c = _mm512_mul_ps(_mm512_sub_ps(load(row + i, m), all(mu)), all(rho));
            store(y + r * d + i, m, _mm512_fmadd_ps(c, load(scale + i, m), load(shift + i, m)));
        }
        mean[r] = mu;
        inverse[r] = rho;
    }
}

// Derivatives of `norm`; those of scale and shift are sums over all rows.
void norm_backward(long n, long d, const bf16 *dy, const bf16 *x, const bf16 *scale, const float *mean,
                   const float *inverse, bf16 *dx, bf16 *dscale, bf16 *dshift, int threads) {
    const long wide = padded(d, 16);
    static thread_local Scratch scratch;
    scratch.begin(2 * wide * threads * sizeof(float));
    float *sums = scratch.take<float>(2 * wide * threads);
    std::memset(sums, 0, 2 * wide * threads * sizeof(float));
#pragma omp parallel num_threads(threads)
    {
        float *ds = sums + 2 * wide * omp_get_thread_num(), *dt = ds + wide;
#pragma omp for schedule(static)
        for (long r = 0; r < n; r++) {
            const bf16 *row = x + r * d, *grad = dy + r * d;
            Vec mu = all(mean[r]), rho = all(inverse[r]), one = _mm512_setzero_ps(), two = one;
            for (long i = 0; i < d; i += 16) {
                __mmask16 m = first(d - i);
                Vec g = load(grad + i, m), c = _mm512_mul_ps(_mm512_sub_ps(load(row + i, m), mu), rho);
                _mm512_storeu_ps(dt + i, _mm512_add_ps(_mm512_loadu_ps(dt + i), g));
                _mm512_storeu_ps(ds + i, _mm512_fmadd_ps(g, c, _mm512_loadu_ps(ds + i)));
                g = _mm512_mul_ps(g, load(scale + i, m));
                one = _mm512_add_ps(one, g);
                two = _mm512_fmadd_ps(g, c, two);
            }
            Vec a = all(_mm512_reduce_add_ps(one) / d), b = all(_mm512_reduce_add_ps(two) / d);
            for (long i = 0; i < d; i += 16) {
                __mmask16 m = first(d - i);
                Vec c = _mm512_mul_ps(_mm512_sub_ps(load(row + i, m), mu), rho);
                Vec g = _mm512_mul_ps(load(grad + i, m), load(scale + i, m));
                g = _mm512_sub_ps(_mm512_sub_ps(g, a), _mm512_mul_ps(c, b));
                store(dx + r * d + i, m, _mm512_mul_ps(g, rho));
            }
        }
    }
    for (long i = 0; i < d; i += 16) {
        Vec ds = _mm512_setzero_ps(), dt = ds;
        for (int t = 0; t < threads; t++) {
            ds = _mm512_add_ps(ds, _mm512_loadu_ps(sums + 2 * wide * t + i));
            dt = _mm512_add_ps(dt, _mm512_loadu_ps(sums + 2 * wide * t + wide + i));
        }
        store(dscale + i, first(d - i), ds);
        store(dshift + i, first(d - i), dt);
    }
}

// dw [o, i] = g^T x and db [o] = the sums of g, of g [n, o] and x [n, i]; db may be null. Threads do not wait for
// each other, so that one rearranges numbers while another multiplies: hardware threads share a matrix unit.
void weight_gradient(long n, long o, long i, const bf16 *g, const bf16 *x, bf16 *dw, bf16 *db, int threads) {
    constexpr long STEPS = 16; // tiles along the sum at a time: two columns of them fit the first cache
    const bool swap = o > i;   // the narrower is turned, by every thread; each has its share of the wider
    const bf16 *left = swap ? x : g, *right = swap ? g : x;
    const long m = swap ? i : o, w = swap ? o : i, mt = tiles(m, 16), pairs = tiles(w, 32);
#pragma omp parallel num_threads(threads)
    {
        Unit unit;
        const int me = omp_get_thread_num(), all_of_us = omp_get_num_threads();
        const long from = pairs * me / all_of_us, to = pairs * (me + 1) / all_of_us, ld = (to - from) * 32;
        static thread_local Scratch scratch;
        scratch.begin((mt + 2) * STEPS * TILE * 2 + mt * 16 * ld * 4 + (mt * 16 + ld) * 4 + 256);
        bf16 *a = scratch.take<bf16>(mt * STEPS * TILE), *b = scratch.take<bf16>(2 * STEPS * TILE);
        float *c = scratch.take<float>(mt * 16 * ld), *sums = scratch.take<float>(mt * 16 + ld);
        std::memset(sums, 0, (mt * 16 + ld) * 4);
        if (n == 0) std::memset(c, 0, mt * 16 * ld * 4);
        const bool of_left = db && !swap && to == pairs, of_right = db && swap;
        for (long start = 0; start < n && from < to; start += STEPS * DEPTH) {
            const long steps = std::min(STEPS, tiles(n - start, DEPTH));
            for (long k = 0; k < steps; k++) {
                const long row = start + k * DEPTH;
                for (long t = 0; t < mt; t++)
                    pack(left + row * m + t * 16, m, n - row, first(m - t * 16), a + (t * STEPS + k) * TILE, true,
                         of_left ? sums + t * 16 : nullptr);
            }
            for (long v = from; v < to; v++) {
                const long nt = std::min(2L, tiles(w - v * 32, 16));
                for (long k = 0; k < steps; k++) {
                    const long row = start + k * DEPTH;
                    for (long t = 0; t < nt; t++) {
                        const long column = v * 32 + t * 16;
                        pack(right + row * w + column, w, n - row, first(w - column), b + (t * STEPS + k) * TILE, false,
                             of_right ? sums + column - from * 32 : nullptr);
                    }
                }
                for (long u = 0; u < mt; u += 2)
                    block(mt - u, nt, {a + u * STEPS * TILE, STEPS * TILE, TILE, DEPTH},
                          {b, STEPS * TILE, TILE, DEPTH}, steps, c + u * 16 * ld + (v - from) * 32, ld, start > 0);
            }
        }
        for (long u = 0; u < mt; u++)
            for (long v = from * 2; v < std::min(to * 2, tiles(w, 16)); v++) {
                __m512i r[16];
                for (long k = 0; k < 16; k++) r[k] = _mm512_loadu_si512(c + (u * 16 + k) * ld + (v - from * 2) * 16);
                if (swap) transpose(r);
                const long top = swap ? v : u, beside = swap ? u : v;
                for (long k = 0; k < 16 && top * 16 + k < o; k++)
                    store(dw + (top * 16 + k) * i + beside * 16, first(i - beside * 16), _mm512_castsi512_ps(r[k]));
            }
        if (of_left)
            for (long k = 0; k < o; k += 16) store(db + k, first(o - k), _mm512_loadu_ps(sums + k));
        if (of_right)
            for (long k = from * 32; k < std::min(o, to * 32); k += 16)
                store(db + k, first(o - k), _mm512_loadu_ps(sums + k - from * 32));
    }
}
}

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
            pack(x + k * DEPTH * columns + j * 16, columns, rows - k * DEPTH, 0xffff, to + (j * depth + k) * TILE, true);
    return {to, depth * TILE, TILE, DEPTH};
}

} // namespace

extern "C" {

// Attention of sequences with themselves: qkv [b, n, 3, heads, e] to out [b, n, heads, e]; e a multiple of 32.
// log_sum [b, heads, n]: of each query, the logarithm to base 2 of what its exponentials sum to; null: not wanted.
// 32 queries at a time, whose scores stay in the first cache.
void attend(long b, long n, long heads, long e, const bf16 *qkv, bf16 *out, float *log_sum, int threads) {
    const long wide = padded(n, 32), nt = tiles(n, 16), d = heads * e, most_rows = 2 * ROWS;
    const Vec scale = all(LOG2_E / __builtin_sqrtf(e));
#pragma omp parallel num_threads(threads)
    {
        Unit unit;
        static thread_local Scratch scratch;
        scratch.begin((2 * wide * e + most_rows * (e + wide)) * 2 + most_rows * (wide + e) * 4);
        bf16 *keys = scratch.take<bf16>(wide * e), *values = scratch.take<bf16>(wide * e);
        bf16 *q = scratch.take<bf16>(most_rows * e), *p = scratch.take<bf16>(most_rows * wide);
        float *s = scratch.take<float>(most_rows * wide), *o = scratch.take<float>(most_rows * e);
#pragma omp for schedule(dynamic, portion(b * heads)) collapse(2)
        for (long x = 0; x < b; x++)
            for (long h = 0; h < heads; h++) {
                const bf16 *from = qkv + x * n * 3 * d + h * e;
                const Operand k = right_turned(from + d, 3 * d, n, e, keys), v = right(from + 2 * d, 3 * d, n, e, values);
                for (long start = 0; start < n; start += most_rows) {
                    const long rows = std::min(n - start, most_rows), rt = tiles(rows, 16);
                    product(rt, nt, gather(from + start * 3 * d, 3 * d, rows, e, q), k, e / DEPTH, s, wide);
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
                        if (log_sum)
                            log_sum[(x * heads + h) * n + start + r] =
                                _mm512_cvtss_f32(most) + __builtin_log2f(total[r]);
                    }
                    std::memset(p + rows * wide, 0, (rt * 16 - rows) * wide * 2);
                    product(rt, e / 16, {p, ROWS * wide, DEPTH, wide}, v, wide / DEPTH, o, e);
                    for (long r = 0; r < rows; r++)
                        for (long i = 0; i < e; i += 16) {
                            Vec y = _mm512_mul_ps(_mm512_loadu_ps(o + r * e + i), all(1 / total[r]));
                            store(out + (x * n + start + r) * d + h * e + i, 0xffff, y);
                        }
                }
            }
    }
}

// The derivative by qkv, from that by out; weights are made anew and stand turned: a row for each key, 32 keys at
// a time.
void attend_backward(long b, long n, long heads, long e, const bf16 *dout, const bf16 *qkv, const bf16 *out,
                     const float *log_sum, bf16 *dqkv, int threads) {
    const long wide = padded(n, 32), nt = tiles(n, 16), et = e / 16, d = heads * e, most_rows = 2 * ROWS;
    const float root = 1 / __builtin_sqrtf(e);
#pragma omp parallel num_threads(threads)
    {
        Unit unit;
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
#pragma omp for schedule(dynamic, portion(b * heads)) collapse(2)
        for (long x = 0; x < b; x++)
            for (long h = 0; h < heads; h++) {
                const bf16 *from = qkv + x * n * 3 * d + h * e, *grad = dout + x * n * d + h * e;
                const bf16 *result = out + x * n * d + h * e;
                bf16 *to = dqkv + x * n * 3 * d + h * e;
                const Operand qs = right(from, 3 * d, n, e, packed[0]), ks = right(from + d, 3 * d, n, e, packed[1]);
                const Operand gs = right(grad, d, n, e, packed[2]), gt = right_turned(grad, d, n, e, packed[3]);
                const Operand qt = right_turned(from, 3 * d, n, e, packed[4]);
                std::memset(less, 0, wide * 4);
                std::memset(mean, 0, wide * 4);
                std::memcpy(less, log_sum + (x * heads + h) * n, n * 4);
                for (long r = 0; r < n; r++) { // of each query, the mean slope of its weights
                    Vec slope = _mm512_setzero_ps();
                    for (long i = 0; i < e; i += 16)
                        slope = _mm512_fmadd_ps(load(grad + r * d + i, 0xffff), load(result + r * d + i, 0xffff), slope);
                    mean[r] = _mm512_reduce_add_ps(slope);
                }
                for (long start = 0; start < n; start += most_rows) {
                    const long rows = std::min(n - start, most_rows), rt = tiles(rows, 16);
                    const bf16 *at = from + start * 3 * d;
                    bf16 *slopes = ds + start * wide;
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
                    scatter(sum, rows, e, to + start * 3 * d + 2 * d, 3 * d);
                    product(rt, et, {slopes, ROWS * wide, DEPTH, wide}, qs, wide / DEPTH, sum, e);
                    scatter(sum, rows, e, to + start * 3 * d + d, 3 * d);
                }
                product(nt, et, left_turned(ds, n, wide, turned), ks, wide / DEPTH, sum, e);
                scatter(sum, n, e, to, 3 * d);
            }
    }
}
}
