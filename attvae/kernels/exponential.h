/* e^x for x <= 0, within two units in the last place; 0 below -87. As 2^k e^r with |r| <= ln(2) / 2 and Taylor's series,
 * whose rest is below 2^-27. Without branches, so that several are taken at a time. */
#include <string.h>

static inline float exponential(float x)
{
    const float rounding = 0x1.8p23f; /* added to a small number, and taken away again, it leaves a whole one */
    float k = x * 1.44269504f + rounding - rounding;
    float r = x - k * 0.693359375f + k * 2.12194440e-4f; /* ln(2) in two parts: the first product is exact */
    float end = 1 / 24.f + r * (1 / 120.f + r * (1 / 720.f + r * (1 / 5040.f)));
    float series = 1 + r * (1 + r * (1 / 2.f + r * (1 / 6.f + r * end)));
    unsigned bits = (unsigned)(int)(k + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof(power));
    return x < -87 ? 0 : series * power;
}
