// Layer norm, row by row.
#pragma once

#include "vectors.h"

namespace {

Vec load(const float *p, __mmask16 m) { return _mm512_maskz_loadu_ps(m, p); }

// y = (x - mean) / deviation * scale + shift for each of `rows` rows of d numbers; keeps both statistics where
// `mean` is given.
void normalise(long rows, long d, float eps, const bf16 *x, const bf16 *scale, const bf16 *shift, bf16 *y, float *mean,
               float *inverse) {
    for (long r = 0; r < rows; r++) {
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
        if (mean) mean[r] = mu, inverse[r] = rho;
    }
}

// dx = the derivative by x, from that by y, plus `onto` where it is given; adds those by scale and shift to `dscale`
// and `dshift`. Makes y anew where it is given.
template <class Number>
void normalise_backward(long rows, long d, const Number *dy, const bf16 *x, const bf16 *scale, const bf16 *shift,
                        const float *mean, const float *inverse, const bf16 *onto, bf16 *dx, bf16 *y, float *dscale,
                        float *dshift) {
    for (long r = 0; r < rows; r++) {
        const bf16 *row = x + r * d;
        const Number *grad = dy + r * d;
        Vec mu = all(mean[r]), rho = all(inverse[r]), one = _mm512_setzero_ps(), two = one;
        for (long i = 0; i < d; i += 16) {
            __mmask16 m = first(d - i);
            Vec g = load(grad + i, m), c = _mm512_mul_ps(_mm512_sub_ps(load(row + i, m), mu), rho);
            Vec s = load(scale + i, m);
            _mm512_storeu_ps(dshift + i, _mm512_add_ps(_mm512_loadu_ps(dshift + i), g));
            _mm512_storeu_ps(dscale + i, _mm512_fmadd_ps(g, c, _mm512_loadu_ps(dscale + i)));
            if (y) store(y + r * d + i, m, _mm512_fmadd_ps(c, s, load(shift + i, m)));
            g = _mm512_mul_ps(g, s);
            one = _mm512_add_ps(one, g);
            two = _mm512_fmadd_ps(g, c, two);
        }
        Vec a = all(_mm512_reduce_add_ps(one) / d), b = all(_mm512_reduce_add_ps(two) / d);
        for (long i = 0; i < d; i += 16) {
            __mmask16 m = first(d - i);
            Vec c = _mm512_mul_ps(_mm512_sub_ps(load(row + i, m), mu), rho);
            Vec g = _mm512_mul_ps(load(grad + i, m), load(scale + i, m));
            g = _mm512_mul_ps(_mm512_sub_ps(_mm512_sub_ps(g, a), _mm512_mul_ps(c, b)), rho);
            if (onto) g = _mm512_add_ps(g, load(onto + r * d + i, m));
            store(dx + r * d + i, m, g);
        }
    }
}

// The sums of `parts` pairs of rows that lie one after another, d wide in steps of `wide`.
void total(long parts, long d, long wide, const float *sums, bf16 *dscale, bf16 *dshift) {
    for (long i = 0; i < d; i += 16) {
        Vec ds = _mm512_setzero_ps(), dt = ds;
        for (long k = 0; k < parts; k++) {
            ds = _mm512_add_ps(ds, _mm512_loadu_ps(sums + 2 * wide * k + i));
            dt = _mm512_add_ps(dt, _mm512_loadu_ps(sums + 2 * wide * k + wide + i));
        }
        store(dscale + i, first(d - i), ds);
        store(dshift + i, first(d - i), dt);
    }
}

} // namespace
