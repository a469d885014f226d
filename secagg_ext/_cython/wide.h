/* Integers of 128 bits, for products of words, and masks in place of branches. */
#ifndef SECAGG_EXT_WIDE_H
#define SECAGG_EXT_WIDE_H

#include <stdint.h>

#ifndef __SIZEOF_INT128__
#error "secagg_ext multiplies 64-bit words with 128-bit integers, which this compiler or target lacks"
#endif

__extension__ typedef unsigned __int128 secagg_wide;

/* All ones if the top bit of `x` is set, else 0. The empty statement hides from the compiler that there are only two
 * cases, so that it cannot make a jump of them. */
static inline uint64_t top_mask(uint64_t x)
{
    uint64_t mask = 0 - (x >> 63);
#if defined(__GNUC__)
    __asm__("" : "+r"(mask));
#endif
    return mask;
}
#endif
