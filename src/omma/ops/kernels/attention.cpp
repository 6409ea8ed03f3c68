// Attention by itself.
#include "attention.h"

extern "C" {

// Of sequences with themselves: qkv [b, n, 3, heads, e] to out [b, n, heads, e] and, unless it is null, log_sum
// [b, heads, n].
void attend(long b, long n, long heads, long e, const bf16 *qkv, bf16 *out, float *log_sum, int threads) {
    const long d = heads * e;
#pragma omp parallel num_threads(threads)
    {
        Unit unit;
#pragma omp for schedule(dynamic, portion(b *heads)) collapse(2)
        for (long x = 0; x < b; x++)
            for (long h = 0; h < heads; h++)
                attend_head(n, d, e, qkv + x * n * 3 * d + h * e, out + x * n * d + h * e,
                            log_sum ? log_sum + (x * heads + h) * n : nullptr);
    }
}

// The derivative by qkv, from that by out.
void attend_backward(long b, long n, long heads, long e, const bf16 *dout, const bf16 *qkv, const bf16 *out,
                     const float *log_sum, bf16 *dqkv, int threads) {
    const long d = heads * e;
#pragma omp parallel num_threads(threads)
    {
        Unit unit;
#pragma omp for schedule(dynamic, portion(b *heads)) collapse(2)
        for (long x = 0; x < b; x++)
            for (long h = 0; h < heads; h++)
                attend_head_backward(n, d, e, dout + x * n * d + h * e, qkv + x * n * 3 * d + h * e,
                                     out + x * n * d + h * e, log_sum + (x * heads + h) * n,
                                     dqkv + x * n * 3 * d + h * e);
    }
}
}
