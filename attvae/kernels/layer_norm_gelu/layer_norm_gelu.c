/* x + gelu(layer_norm(x)) and its gradients, pixel by pixel, each number read and written once. compiled.py compiles and
 * calls it.
 *
 * A pixel is a row of channels side by side. What a row needs several times stays in the cache, and is computed anew in
 * the backward pass, for which so only x is kept. All sums have an order that the number of threads does not change. */
#include <string.h>

#include "../exponential.h"
#include "../sums.h"

struct rows {
    float *at;
    long long apart; /* from one to the next */
};

struct shape {
    long long rows, channels;
};

struct gate {
    float value, slope; /* s and s (1 - s) */
};

enum {
    AT_ONCE = 8, /* rows */
    BLOCK = 256, /* rows whose gradients of the parameters are one sum: a multiple of AT_ONCE */
};

static long long least(long long a, long long b) { return a < b ? a : b; }

static inline float *row(struct rows all, long long r) { return all.at + r * all.apart; }

static inline struct rows starting(struct rows all, long long r) { return (struct rows){row(all, r), all.apart}; }

/* GELU's tanh form is z s(2 u) with s(t) = 1 / (1 + e^-t) and u = sqrt(2 / pi) (z + 0.044715 z^3), as
 * s(2 u) = (1 + tanh(u)) / 2. */
static inline struct gate gate(float z)
{
    float twice_u = 1.59576912f * z * (1 + 0.044715f * (z * z));
    float e = exponential(-__builtin_fabsf(twice_u)), s = 1 / (1 + e);
    return (struct gate){twice_u < 0 ? e * s : s, e * s * s};
}

/* Of `count` rows x - mean, and the factors 1 / sqrt(variance + eps). Each step is taken for all of them before the next: so
 * the core need not wait for its result. */
static void normalise(struct rows centred, float factors[AT_ONCE], struct rows x, long long count, long long channels,
                      float eps)
{
    for (long long r = 0; r < count; r++) {
        float *restrict to = row(centred, r);
        const float *restrict from = row(x, r);
        float mean = sum(from, channels) / channels;
        for (long long c = 0; c < channels; c++)
            to[c] = from[c] - mean;
    }
    for (long long r = 0; r < count; r++) {
        const float *from = row(centred, r);
        factors[r] = 1 / __builtin_sqrtf(dot(from, from, channels) / channels + eps);
    }
}

void forward(struct rows out, struct rows x, const float *restrict weight, const float *restrict bias, struct shape s,
             float eps, int threads)
{
#pragma omp parallel for num_threads(threads)
    for (long long from = 0; from < s.rows; from += AT_ONCE) {
        long long count = least(AT_ONCE, s.rows - from);
        float factors[AT_ONCE];
        struct rows to = starting(out, from), of = starting(x, from);
        normalise(to, factors, of, count, s.channels, eps);
        for (long long r = 0; r < count; r++) {
            float *restrict sum = row(to, r), factor = factors[r];
            const float *restrict x = row(of, r);
            for (long long c = 0; c < s.channels; c++) {
                float z = sum[c] * factor * weight[c] + bias[c];
                sum[c] = x[c] + z * gate(z).value;
            }
        }
    }
}

/* Adds to the gradients of weight and bias. */
static void backward_rows(struct rows of_x, float *restrict of_weight, float *restrict of_bias, struct rows centred,
                          struct rows of_out, struct rows x, const float *restrict weight, const float *restrict bias,
                          long long count, long long channels, float eps)
{
    float factors[AT_ONCE], means[AT_ONCE], along[AT_ONCE];
    normalise(centred, factors, x, count, channels, eps);
    for (long long r = 0; r < count; r++) {
        float *restrict to = row(of_x, r), factor = factors[r];
        const float *restrict from = row(centred, r), *restrict given = row(of_out, r);
        for (long long c = 0; c < channels; c++) {
            float unit = from[c] * factor, z = unit * weight[c] + bias[c];
            struct gate s = gate(z);
            float of_z = given[c] * (s.value + z * s.slope * (1.59576912f * (1 + 3 * 0.044715f * (z * z))));
            of_weight[c] += of_z * unit;
            of_bias[c] += of_z;
            to[c] = of_z * weight[c];
        }
    }
    for (long long r = 0; r < count; r++) {
        means[r] = sum(row(of_x, r), channels) / channels;
        along[r] = factors[r] * factors[r] * dot(row(of_x, r), row(centred, r), channels) / channels;
    }
    for (long long r = 0; r < count; r++) {
        float *restrict to = row(of_x, r);
        const float *restrict from = row(centred, r), *restrict given = row(of_out, r);
        for (long long c = 0; c < channels; c++)
            to[c] = given[c] + factors[r] * (to[c] - means[r] - along[r] * from[c]);
    }
}

static long long blocks(struct shape s) { return (s.rows + BLOCK - 1) / BLOCK; }

/* For each block its gradients of weight and bias, and centred rows. */
static long long block_room(struct shape s) { return (2 + AT_ONCE) * s.channels; }

/* The numbers of memory that `backward` works in. */
long long backward_room(struct shape s) { return blocks(s) * block_room(s); }

void backward(struct rows of_x, float *restrict of_weight, float *restrict of_bias, float *restrict memory,
              struct rows of_out, struct rows x, const float *restrict weight, const float *restrict bias,
              struct shape s, float eps, int threads)
{
#pragma omp parallel for num_threads(threads)
    for (long long b = 0; b < blocks(s); b++) {
        float *weights = memory + b * block_room(s), *biases = weights + s.channels;
        struct rows centred = {biases + s.channels, s.channels};
        memset(weights, 0, 2 * s.channels * sizeof(float));
        long long to = least((b + 1) * BLOCK, s.rows);
        for (long long r = b * BLOCK; r < to; r += AT_ONCE)
            backward_rows(starting(of_x, r), weights, biases, centred, starting(of_out, r), starting(x, r), weight, bias,
                          least(AT_ONCE, to - r), s.channels, eps);
    }
    memset(of_weight, 0, s.channels * sizeof(float));
    memset(of_bias, 0, s.channels * sizeof(float));
    for (long long b = 0; b < blocks(s); b++)
        for (long long c = 0; c < s.channels; c++) {
            of_weight[c] += memory[b * block_room(s) + c];
            of_bias[c] += memory[b * block_room(s) + s.channels + c];
        }
}
