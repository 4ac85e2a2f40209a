/* One update of Adamax with the clipping of the gradients and the average of the weights, in one pass over the memory.
 * compiled_adamax.py compiles it. Every operation is rounded by itself (-ffp-contract=off), in float32: so the result
 * depends neither on the compiler, nor on the processor, nor on the number of threads. */
#include <omp.h>

struct tensors {
    long long size; /* elements of each */
    float *weights;
    const float *gradients;
    float *means; /* exp_avg */
    float *maxima; /* exp_inf */
    float *averages; /* ema */
};

struct coefficients {
    float clip;    /* factor of the gradients */
    float penalty; /* 2 l2 */
    float mean_rate; /* 1 - beta1 */
    float beta2;
    float eps;
    float step_size; /* lr / (1 - beta1^t) */
    float average_rate; /* 1 - decay */
};

/* torch's formula: exact at both ends. */
static inline float lerp(float a, float b, float rate)
{
    return rate < 0.5f ? a + rate * (b - a) : b - (1 - rate) * (b - a);
}

static void update(long long size, float *restrict weights, const float *restrict gradients, float *restrict means,
                   float *restrict maxima, float *restrict averages, struct coefficients c)
{
    for (long long i = 0; i < size; i++) {
        float gradient = c.clip * gradients[i] + c.penalty * weights[i];
        float magnitude = __builtin_fabsf(gradient), maximum = c.beta2 * maxima[i];
        means[i] = lerp(means[i], gradient, c.mean_rate);
        /* What is not a number, in either, stays so: as torch's maximum has it. */
        maxima[i] = (magnitude > maximum) | (magnitude != magnitude) ? magnitude : maximum;
        weights[i] -= c.step_size * means[i] / (maxima[i] + c.eps);
        averages[i] = lerp(averages[i], weights[i], c.average_rate);
    }
}

/* Each thread takes its part of every tensor. */
void adamax(const struct tensors *all, long long count, int threads, const struct coefficients *c)
{
#pragma omp parallel num_threads(threads)
    for (long long n = 0; n < count; n++) {
        struct tensors x = all[n];
        long long me = omp_get_thread_num(), of = omp_get_num_threads();
        long long from = x.size * me / of, to = x.size * (me + 1) / of;
        update(to - from, x.weights + from, x.gradients + from, x.means + from, x.maxima + from, x.averages + from, *c);
    }
}
