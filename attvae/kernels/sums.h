/* Sums of many numbers side by side, several at a time: in an order that neither the compiler nor the processor changes. */
#include <string.h>

typedef float lanes __attribute__((vector_size(64), aligned(4), may_alias));
typedef float half __attribute__((vector_size(32), aligned(4), may_alias));
typedef float quarter __attribute__((vector_size(16), aligned(4), may_alias));
enum { LANES = sizeof(lanes) / sizeof(float), QUARTER = LANES / 4 };

static inline quarter quartered(lanes sums)
{
    half halves[2];
    quarter quarters[2];
    memcpy(halves, &sums, sizeof(halves));
    halves[0] += halves[1];
    memcpy(quarters, halves, sizeof(quarters));
    return quarters[0] + quarters[1];
}

static inline float folded(quarter sums) { return (sums[0] + sums[2]) + (sums[1] + sums[3]); }

/* The sum of products, `sums` being those before i. */
static inline float total(lanes sums, const float *x, const float *y, long long i, long long width)
{
    quarter some = quartered(sums);
    for (; i + QUARTER <= width; i += QUARTER)
        some += *(const quarter *)(x + i) * *(const quarter *)(y + i);
    float sum = folded(some);
    for (; i < width; i++)
        sum += x[i] * y[i];
    return sum;
}

static inline float dot(const float *x, const float *y, long long width)
{
    lanes sums = {0};
    long long i = 0;
    for (; i + LANES <= width; i += LANES)
        sums += *(const lanes *)(x + i) * *(const lanes *)(y + i);
    return total(sums, x, y, i, width);
}

static inline float sum(const float *x, long long width)
{
    lanes sums = {0};
    long long i = 0;
    for (; i + LANES <= width; i += LANES)
        sums += *(const lanes *)(x + i);
    quarter some = quartered(sums);
    for (; i + QUARTER <= width; i += QUARTER)
        some += *(const quarter *)(x + i);
    float found = folded(some);
    for (; i < width; i++)
        found += x[i];
    return found;
}
