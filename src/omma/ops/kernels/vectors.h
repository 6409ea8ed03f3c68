// Kernels in bf16 for x86 processors with AVX-512's bf16, or AMX: what a transformer's training step does between and
// behind its large products. Sums, exponentials and statistics are fp32; what is stored is rounded once.
// Called through ctypes with plain pointers (native.py), compiled on the machine that uses them.
#pragma once

#include <immintrin.h>
#include <omp.h>

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

// The same of whole vectors; 32 numbers at once.
Vec get(const bf16 *p) { return load(p, 0xffff); }
void put(bf16 *p, Vec low, Vec high) {
    _mm512_storeu_si512(p, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
}

// 2^x to a relative 3e-6; 0 far below.
Vec power_of_two(Vec x) {
    Vec n = _mm512_roundscale_ps(x, 0), r = _mm512_sub_ps(x, n), p = all(1.33335581e-3f);
    for (float c : {9.61812911e-3f, 5.55041087e-2f, .240226507f, .693147181f, 1.f}) p = _mm512_fmadd_ps(p, r, all(c));
    return _mm512_scalef_ps(p, n);
}

// A function of |x| by cubics on 16 pieces of [0, 5.5], to an absolute 3e-5; constant beyond.
class Pieces {
    static constexpr float PER_UNIT = 15 / 5.5f;
    Vec table[4];

  public:
    static constexpr float END = 5.5f;
    template <class Function> explicit Pieces(Function f) {
        float t[4][16];
        for (int piece = 0; piece < 16; piece++) {
            double y[4]; // at -1/2, -1/6, 1/6 and 1/2 of a piece's length from its middle
            for (int i = 0; i < 4; i++) y[i] = f((piece + i / 3. - .5) / PER_UNIT);
            const double outer = (y[0] + y[3]) / 2, inner = (y[1] + y[2]) / 2; // even part
            const double steep = y[3] - y[0], flat = (y[2] - y[1]) * 3;        // odd part, over its argument
            t[2][piece] = (outer - inner) * 4.5;
            t[0][piece] = inner - t[2][piece] / 36;
            t[3][piece] = (steep - flat) * 4.5;
            t[1][piece] = flat - t[3][piece] / 36;
        }
        for (int c = 0; c < 4; c++) table[c] = _mm512_loadu_ps(t[c]);
    }
    // Of numbers from 0 to END.
    Vec operator()(Vec size) const {
        const Vec whole = all(12582912.f); // added, it leaves the nearest whole number in the low bits
        Vec near = _mm512_fmadd_ps(size, all(PER_UNIT), whole);
        Vec r = _mm512_fmsub_ps(size, all(PER_UNIT), _mm512_sub_ps(near, whole));
        __m512i piece = _mm512_castps_si512(near);
        Vec y = _mm512_permutexvar_ps(piece, table[3]);
        for (int c = 2; c >= 0; c--) y = _mm512_fmadd_ps(y, r, _mm512_permutexvar_ps(piece, table[c]));
        return y;
    }
};

double below(double x) { return std::erfc(x / std::sqrt(2.)) / 2; } // the normal law's share below -x
double slope_below(double x) { return below(x) - x * std::exp(-x * x / 2) * 0.3989422804014327; } // GELU's at -x

// x * (the normal law's share below x).
class Gelu {
    Pieces pieces{below};

  public:
    Vec operator()(Vec v) const {
        Vec size = _mm512_min_ps(_mm512_abs_ps(v), all(Pieces::END));
        return _mm512_fnmadd_ps(size, pieces(size), _mm512_max_ps(_mm512_setzero_ps(), v));
    }
};

class GeluSlope {
    Pieces pieces{slope_below};

  public:
    Vec operator()(Vec v) const {
        Vec slope = pieces(_mm512_min_ps(_mm512_abs_ps(v), all(Pieces::END)));
        __mmask16 positive = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_GE_OQ);
        return _mm512_mask_sub_ps(slope, positive, all(1.f), slope);
    }
};

} // namespace
