/* How large the values of a tensor are: the largest magnitude and the sum of squares. Both are kept in parts side by
 * side, for a compiler may not change the order of a sum of doubles, and so vectorises only what has one already. */
#ifndef SECAGG_EXT_WEIGH_H
#define SECAGG_EXT_WEIGH_H

#include <math.h>
#include "clones.h"
#include "floats.h"

#if defined(__GNUC__)
#define WEIGH_INLINE static inline __attribute__((always_inline))
#else
#define WEIGH_INLINE static inline
#endif

enum {
    PIECE = 1024, /* values of 16 bits held as doubles at a time: 8 KiB, which stay in the first cache */
    PARTS = 32
};

struct weights {
    double largest[PARTS], energy[PARTS];
};

/* Weighs value i, of floats or doubles, into a part. The flags are constants where this is inlined. */
WEIGH_INLINE void weigh_one(const void *values, const float *residual, ptrdiff_t i, double factor, struct weights *to,
                            ptrdiff_t part, int single, int fed_back)
{
    const double x = (single ? (double)((const float *)values)[i] : ((const double *)values)[i]) * factor;
    const double y = fed_back ? x + (double)residual[i] : x, size = fabs(y);
    to->largest[part] = size > to->largest[part] ? size : to->largest[part];
    to->energy[part] += y * y;
}

WEIGH_INLINE void weigh_piece(const void *values, const float *residual, ptrdiff_t count, double factor,
                              struct weights *to, int single, int fed_back)
{
    ptrdiff_t i = 0, j;
    for (; i + PARTS <= count; i += PARTS)
        for (j = 0; j < PARTS; j++)
            weigh_one(values, residual, i + j, factor, to, j, single, fed_back);
    for (j = 0; i < count; i++, j++)
        weigh_one(values, residual, i, factor, to, j, single, fed_back);
}

/* Weighs all values times the factor, plus the residual, which may be null. */
SECAGG_CLONES
static void weigh_values(const void *values, enum tensor_dtype dtype, const float *residual, ptrdiff_t count,
                         double factor, double *largest, double *energy)
{
    const uint8_t *octets = values;
    const size_t itemsize = size_of_dtype(dtype);
    struct weights parts = {{0}, {0}};
    double wide[PIECE];
    while (count) {
        const ptrdiff_t size = count < PIECE ? count : PIECE;
        const void *reals = itemsize == 2 ? (const void *)wide : octets;
        if (itemsize == 2)
            widen(octets, dtype, size, wide);
#define WEIGH(single, fed_back) weigh_piece(reals, residual, size, factor, &parts, single, fed_back)
        if (dtype == OF_FLOAT32)
            residual ? WEIGH(1, 1) : WEIGH(1, 0);
        else
            residual ? WEIGH(0, 1) : WEIGH(0, 0);
#undef WEIGH
        octets += (size_t)size * itemsize;
        if (residual)
            residual += size;
        count -= size;
    }
    *largest = *energy = 0;
    for (int j = 0; j < PARTS; j++) {
        *largest = parts.largest[j] > *largest ? parts.largest[j] : *largest;
        *energy += parts.energy[j];
    }
    if (isnan(*energy)) /* squares are not negative, so that only a NaN among the values makes one of their sum */
        *largest = *energy;
}
#endif
