/* Floats by their bits, in integer arithmetic that compilers vectorise: magnitudes compared with a bound; float16
 * and bfloat16 patterns to float and back. Rounding is to nearest, ties to even; a NaN stays a NaN and keeps the
 * payload that fits. Then whole stretches of tensors, of any dtype, as doubles and back. */
#ifndef SECAGG_EXT_FLOATS_H
#define SECAGG_EXT_FLOATS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Bits of |value|. They are ordered as the magnitudes are, NaN above infinity, and stay below 2^63. */
static inline uint64_t magnitude(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits & ~((uint64_t)1 << 63);
}

/* Index of the first of `count` values for which |x| <= bound does not hold, as it does not for NaN, or -1. */
static inline ptrdiff_t first_beyond(const double *values, ptrdiff_t count, double bound)
{
    const uint64_t limit = magnitude(bound);
    uint64_t borrow = 0; /* its top bit: some magnitude is over the limit */
    ptrdiff_t i;
    for (i = 0; i < count; i++)
        borrow |= limit - magnitude(values[i]);
    if (!(borrow >> 63))
        return -1;
    for (i = 0; magnitude(values[i]) <= limit; i++)
        ;
    return i;
}

/* The same of floats, without making doubles of them. */
static inline ptrdiff_t first_beyond_float(const float *values, ptrdiff_t count, double bound)
{
    uint32_t limit = bits_of((float)bound) & 0x7FFFFFFF, borrow = 0; /* of -0 too */
    ptrdiff_t i;
    if ((double)float_of(limit) > bound)
        limit--; /* the largest float that is not over the bound, which is no float itself */
    for (i = 0; i < count; i++)
        borrow |= limit - (bits_of(values[i]) & 0x7FFFFFFF);
    if (!(borrow >> 31))
        return -1;
    for (i = 0; (bits_of(values[i]) & 0x7FFFFFFF) <= limit; i++)
        ;
    return i;
}

static inline float float_from_bfloat16(uint16_t pattern)
{
    return float_of((uint32_t)pattern << 16);
}

static inline uint16_t bfloat16_from_float(float value)
{
    const uint32_t bits = bits_of(value), upper = bits >> 16;
    /* Half a unit of the last place, less one bit for ties that are even already, carries where it should. */
    const uint32_t rounded = (bits + 0x7FFF + (upper & 1)) >> 16;
    return (uint16_t)(value != value ? upper | 0x40 : rounded);
}

static inline float float_from_float16(uint16_t pattern)
{
    const uint32_t sign = (uint32_t)(pattern & 0x8000) << 16;
    const uint32_t exponent = pattern & 0x7C00, shifted = (uint32_t)(pattern & 0x7FFF) << 13;
    /* 112 is the difference of the exponents' biases; infinity and NaN need it twice. */
    const uint32_t normal = shifted + (exponent == 0x7C00 ? 224u << 23 : 112u << 23);
    /* A subnormal is its mantissa times 2^-24: put below a leading 2^-14, which is taken off again. */
    const uint32_t subnormal = bits_of(float_of(shifted + (113u << 23)) - float_of(113u << 23));
    return float_of((exponent == 0 ? subnormal : normal) | sign);
}

static inline uint16_t float16_from_float(float value)
{
    const uint32_t sign = bits_of(value) & 0x80000000u, bits = bits_of(value) ^ sign;
    /* As for bfloat16, with 13 bits to drop. */
    const uint32_t normal = (bits - (112u << 23) + 0xFFF + ((bits >> 13) & 1)) >> 13;
    /* Beside 0.5 a float's last place is 2^-24, a float16 subnormal's, so the sum rounds as it must. */
    const uint32_t subnormal = bits_of(float_of(bits) + 0.5f) - bits_of(0.5f);
    uint32_t half = bits < 113u << 23 ? subnormal : normal;
    if (bits >= 143u << 23) /* 2^16 and more, infinity and NaN */
        half = bits > 0x7F800000u ? 0x7E00 | ((bits >> 13) & 0x3FF) : 0x7C00;
    return (uint16_t)(half | sign >> 16);
}

/* What the elements of a tensor are. */
enum tensor_dtype { OF_FLOAT16, OF_BFLOAT16, OF_FLOAT32, OF_FLOAT64 };

static inline size_t size_of_dtype(enum tensor_dtype dtype)
{
    return dtype == OF_FLOAT64 ? 8 : dtype == OF_FLOAT32 ? 4 : 2;
}

/* wide = tensor. */
static inline void widen(const void *tensor, enum tensor_dtype dtype, ptrdiff_t count, double *wide)
{
    const uint16_t *const patterns = tensor;
    const float *const singles = tensor;
    const double *const doubles = tensor;
    ptrdiff_t i;
    if (dtype == OF_FLOAT32)
        for (i = 0; i < count; i++)
            wide[i] = singles[i];
    else if (dtype == OF_FLOAT64)
        for (i = 0; i < count; i++)
            wide[i] = doubles[i];
    else if (dtype == OF_FLOAT16)
        for (i = 0; i < count; i++)
            wide[i] = float_from_float16(patterns[i]);
    else
        for (i = 0; i < count; i++)
            wide[i] = float_from_bfloat16(patterns[i]);
}

/* tensor = reals * factor, from doubles and from floats: the products are of doubles either way. */
#define DEFINE_NARROW(name, real) \
    static inline void name(const real *reals, double factor, enum tensor_dtype dtype, ptrdiff_t count, void *tensor) \
    { \
        uint16_t *const patterns = tensor; \
        float *const singles = tensor; \
        double *const doubles = tensor; \
        ptrdiff_t i; \
        if (dtype == OF_FLOAT32) \
            for (i = 0; i < count; i++) \
                singles[i] = (float)(reals[i] * factor); \
        else if (dtype == OF_FLOAT64) \
            for (i = 0; i < count; i++) \
                doubles[i] = reals[i] * factor; \
        else if (dtype == OF_FLOAT16) \
            for (i = 0; i < count; i++) \
                patterns[i] = float16_from_float((float)(reals[i] * factor)); \
        else \
            for (i = 0; i < count; i++) \
                patterns[i] = bfloat16_from_float((float)(reals[i] * factor)); \
    }
DEFINE_NARROW(narrow_doubles, double)
DEFINE_NARROW(narrow_singles, float)
#undef DEFINE_NARROW
#endif
