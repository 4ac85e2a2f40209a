/* What depth-wise attention is made of, in both passes: at each pixel the products of one map with many, their softmax, and
 * sums of maps under such weights. weighted_maps.py compiles and calls it.
 *
 * A sample of a map is a number of rows of numbers side by side. Channels last, a row is a pixel and has one weight; else
 * it is a channel, and each of its numbers has the weight of its pixel.
 *
 * Four maps are read at a time: while the core waits for one it reads the others, and the sum, or the one map, stays in the
 * cache. All additions have an order that the number of threads does not change. */
#include <math.h>
#include <string.h>

#include "../exponential.h"
#include "../sums.h"

struct map {
    float *at;
    long long sample, row; /* from one to the next */
    float *weights;        /* of each pixel, sample after sample */
};

struct shape {
    long long samples, rows, width, channels_last;
};

enum {
    AT_ONCE = 4,
    TILE = 8192, /* numbers of a sum that wait in the cache for the next four maps */
    BLOCK = 64,  /* pixels whose softmax is taken at a time */
    AHEAD = 8,   /* rows: asked for so early, as the core does not foresee rows that are far apart, of few numbers each */
};

#define SPECIALISED static inline __attribute__((always_inline)) /* for each `count` */

static long long least(long long a, long long b) { return a < b ? a : b; }

static inline void ask_for(const float *row)
{
    __builtin_prefetch(row);
    __builtin_prefetch(row + LANES);
}

/* Where the first row of each map is, and its weights. */
SPECIALISED void find(const struct map *maps, struct shape s, long long sample, long long row, int count,
                      const float *rows[AT_ONCE], float *weights[AT_ONCE])
{
    for (int n = 0; n < count; n++) {
        rows[n] = maps[n].at + sample * maps[n].sample + row * maps[n].row;
        weights[n] = maps[n].weights + (s.channels_last ? sample * s.rows + row : sample * s.width);
    }
}

SPECIALISED void add(float *restrict sum, long long apart, const struct map *maps, struct shape s, long long sample,
                     long long from, long long to, int count)
{
    const float *x[AT_ONCE];
    float *w[AT_ONCE];
    find(maps, s, sample, from, count, x, w);
    for (long long r = from; r < to; r++, sum += apart) {
        long long i = 0;
        for (; i + LANES <= s.width; i += LANES) {
            lanes sums = *(const lanes *)(sum + i);
            for (int n = 0; n < count; n++)
                if (s.channels_last)
                    sums += *w[n] * *(const lanes *)(x[n] + i);
                else
                    sums += *(const lanes *)(w[n] + i) * *(const lanes *)(x[n] + i);
            *(lanes *)(sum + i) = sums;
        }
        for (; i < s.width; i++)
            for (int n = 0; n < count; n++)
                sum[i] += w[n][s.channels_last ? 0 : i] * x[n][i];
        for (int n = 0; n < count; n++) {
            w[n] += s.channels_last;
            x[n] += maps[n].row;
            ask_for(x[n] + AHEAD * maps[n].row);
        }
    }
}

/* out = the sum of weights times map. */
void weighted_sum(const struct map *out, const struct map *maps, long long count, struct shape s, int threads)
{
    long long height = TILE > s.width ? TILE / s.width : 1, tiles = (s.rows + height - 1) / height;
#pragma omp parallel for num_threads(threads)
    for (long long t = 0; t < s.samples * tiles; t++) {
        long long sample = t / tiles, from = t % tiles * height, to = least(from + height, s.rows);
        float *sum = out->at + sample * out->sample + from * out->row;
        for (long long r = 0; r < to - from; r++)
            memset(sum + r * out->row, 0, s.width * sizeof(float));
        for (long long n = 0; n < count; n += AT_ONCE)
            switch (count - n) {
            case 1: add(sum, out->row, maps + n, s, sample, from, to, 1); break;
            case 2: add(sum, out->row, maps + n, s, sample, from, to, 2); break;
            case 3: add(sum, out->row, maps + n, s, sample, from, to, 3); break;
            default: add(sum, out->row, maps + n, s, sample, from, to, AT_ONCE);
            }
    }
}

SPECIALISED void multiply(const float *one, long long apart, const struct map *maps, struct shape s, long long sample,
                          int count)
{
    const float *x[AT_ONCE];
    float *w[AT_ONCE];
    find(maps, s, sample, 0, count, x, w);
    for (long long r = 0; r < s.rows; r++, one += apart) {
        long long i = 0;
        if (s.channels_last) {
            lanes sums[AT_ONCE] = {0};
            for (; i + LANES <= s.width; i += LANES)
                for (int n = 0; n < count; n++)
                    sums[n] += *(const lanes *)(one + i) * *(const lanes *)(x[n] + i);
            for (int n = 0; n < count; n++)
                *w[n]++ = total(sums[n], one, x[n], i, s.width);
        } else {
            for (; i + LANES <= s.width; i += LANES)
                for (int n = 0; n < count; n++) {
                    lanes sum = {0};
                    if (r)
                        sum = *(const lanes *)(w[n] + i);
                    *(lanes *)(w[n] + i) = sum + *(const lanes *)(one + i) * *(const lanes *)(x[n] + i);
                }
            for (; i < s.width; i++)
                for (int n = 0; n < count; n++)
                    w[n][i] = (r ? w[n][i] : 0) + one[i] * x[n][i];
        }
        for (int n = 0; n < count; n++) {
            x[n] += maps[n].row;
            ask_for(x[n] + AHEAD * maps[n].row);
        }
    }
}

/* Weights of each map = the sum over the channels of its product with `one`. */
void products(const struct map *one, const struct map *maps, long long count, struct shape s, int threads)
{
    long long groups = (count + AT_ONCE - 1) / AT_ONCE;
#pragma omp parallel for num_threads(threads)
    for (long long t = 0; t < s.samples * groups; t++) {
        long long sample = t / groups, n = t % groups * AT_ONCE;
        const float *from = one->at + sample * one->sample;
        switch (count - n) {
        case 1: multiply(from, one->row, maps + n, s, sample, 1); break;
        case 2: multiply(from, one->row, maps + n, s, sample, 2); break;
        case 3: multiply(from, one->row, maps + n, s, sample, 3); break;
        default: multiply(from, one->row, maps + n, s, sample, AT_ONCE);
        }
    }
}

/* x[n][pixel], for all n: the softmax over n of scale times x. */
void softmax(float *x, long long count, long long pixels, float scale, int threads)
{
#pragma omp parallel for num_threads(threads)
    for (long long from = 0; from < pixels; from += BLOCK) {
        long long width = least(BLOCK, pixels - from);
        float most[BLOCK], sum[BLOCK] = {0};
        for (long long i = 0; i < width; i++)
            most[i] = -INFINITY;
        for (float *row = x + from; row < x + count * pixels; row += pixels)
            for (long long i = 0; i < width; i++) {
                row[i] *= scale;
                most[i] = row[i] > most[i] ? row[i] : most[i];
            }
        for (float *row = x + from; row < x + count * pixels; row += pixels)
            for (long long i = 0; i < width; i++)
                sum[i] += row[i] = exponential(row[i] - most[i]);
        for (float *row = x + from; row < x + count * pixels; row += pixels)
            for (long long i = 0; i < width; i++)
                row[i] /= sum[i];
    }
}

/* The gradients of p become those of what p is the softmax of, before the scale. */
void softmax_gradient(float *gradients, const float *p, long long count, long long pixels, float scale, int threads)
{
#pragma omp parallel for num_threads(threads)
    for (long long from = 0; from < pixels; from += BLOCK) {
        long long to = least(from + BLOCK, pixels);
        float mean[BLOCK] = {0};
        for (long long n = 0; n < count * pixels; n += pixels)
            for (long long i = from; i < to; i++)
                mean[i - from] += p[n + i] * gradients[n + i];
        for (long long n = 0; n < count * pixels; n += pixels)
            for (long long i = from; i < to; i++)
                gradients[n + i] = scale * p[n + i] * (gradients[n + i] - mean[i - from]);
    }
}
