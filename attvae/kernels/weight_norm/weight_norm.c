/* Weight-normalised kernels and their gradients, each number read and written once. compiled.py compiles and calls it.
 *
 * v lies as [output, input, point], the kernel and its gradient as [output, point, input]: as channels-last maps want it.
 * All sums have an order that the number of threads does not change. */
#include <math.h>

#include "../sums.h"

struct shape {
    long long outputs, inputs, points;
};

#define SPECIALISED static inline __attribute__((always_inline)) /* for each number of points */

/* to[column][row] = factor times from[row][column] */
SPECIALISED void turned(float *restrict to, const float *restrict from, float factor, long long rows, long long columns)
{
    for (long long r = 0; r < rows; r++)
        for (long long c = 0; c < columns; c++)
            to[c * rows + r] = factor * from[r * columns + c];
}

void kernel(float *restrict kernel, float *restrict norms, float *restrict factors, const float *v, const float *log_g,
            struct shape s, float least_norm, int threads)
{
    long long size = s.inputs * s.points;
#pragma omp parallel for num_threads(threads)
    for (long long o = 0; o < s.outputs; o++) {
        const float *from = v + o * size;
        float *to = kernel + o * size, norm = __builtin_sqrtf(dot(from, from, size));
        norms[o] = norm < least_norm ? least_norm : norm; /* what is not a number stays so */
        factors[o] = expf(log_g[o]) / norms[o];
        switch (s.points) {
        case 1: turned(to, from, factors[o], s.inputs, 1); break;
        case 9: turned(to, from, factors[o], s.inputs, 9); break;
        default: turned(to, from, factors[o], s.inputs, s.points);
        }
    }
}

void gradients(float *restrict of_v, float *restrict of_log_g, const float *restrict of_kernel, const float *restrict v,
               const float *norms, const float *factors, struct shape s, float least_norm, int threads)
{
    long long size = s.inputs * s.points;
#pragma omp parallel for num_threads(threads)
    for (long long o = 0; o < s.outputs; o++) {
        const float *from = of_kernel + o * size, *along = v + o * size;
        float *to = of_v + o * size;
        switch (s.points) {
        case 1: turned(to, from, factors[o], 1, s.inputs); break;
        case 9: turned(to, from, factors[o], 9, s.inputs); break;
        default: turned(to, from, factors[o], s.points, s.inputs);
        }
        of_log_g[o] = dot(to, along, size);
        float radial = norms[o] <= least_norm ? 0 : of_log_g[o] / norms[o] / norms[o]; /* the least norm is a constant */
        for (long long i = 0; i < size; i++)
            to[i] -= radial * along[i];
    }
}
