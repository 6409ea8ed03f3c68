// GELU and layer norm by themselves.
#include "rows.h"

extern "C" {

// y = GELU(x), n numbers.
void gelu(long n, const bf16 *x, bf16 *y, int threads) {
    const Gelu function;
#pragma omp parallel for num_threads(threads) schedule(dynamic, portion(n / 16))
    for (long i = 0; i < n; i += 16) store(y + i, first(n - i), function(load(x + i, first(n - i))));
}

// dx = dy times its slope.
void gelu_backward(long n, const bf16 *dy, const bf16 *x, bf16 *dx, int threads) {
    const GeluSlope slope;
#pragma omp parallel for num_threads(threads) schedule(dynamic, portion(n / 16))
    for (long i = 0; i < n; i += 16) {
        __mmask16 m = first(n - i);
        store(dx + i, m, _mm512_mul_ps(load(dy + i, m), slope(load(x + i, m))));
    }
}

// Layer norm of n rows of d numbers, and both statistics of each.
void norm(long n, long d, float eps, const bf16 *x, const bf16 *scale, const bf16 *shift, bf16 *y, float *mean,
          float *inverse, int threads) {
    const long size = portion(n);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (long r = 0; r < n; r += size)
        normalise(std::min(size, n - r), d, eps, x + r * d, scale, shift, y + r * d, mean + r, inverse + r);
}

// Its derivatives; those of scale and shift are sums over all rows.
void norm_backward(long n, long d, const bf16 *dy, const bf16 *x, const bf16 *scale, const float *mean,
                   const float *inverse, bf16 *dx, bf16 *dscale, bf16 *dshift, int threads) {
    const long wide = padded(d, 16);
    static thread_local Scratch scratch;
    scratch.begin(2 * wide * threads * sizeof(float));
    float *sums = scratch.take<float>(2 * wide * threads);
    std::memset(sums, 0, 2 * wide * threads * sizeof(float));
#pragma omp parallel num_threads(threads)
    {
        const long me = omp_get_thread_num(), of = omp_get_num_threads(), from = n * me / of;
        float *ds = sums + 2 * wide * me;
        normalise_backward(n * (me + 1) / of - from, d, dy + from * d, x + from * d, scale, nullptr, mean + from,
                           inverse + from, nullptr, dx + from * d, nullptr, ds, ds + wide);
    }
    total(threads, d, wide, sums, dscale, dshift);
}
}
