/* Products of rows of words and secret rows, modulo q from 2 to 2^60, in constant time: no branch, no address and no
 * division depends on a word. All words are below 2^60, whatever q is.
 */
#ifndef SECAGG_EXT_WORD_MACS_H
#define SECAGG_EXT_WORD_MACS_H

#include <stddef.h>

#include "wide.h"

enum { BATCH = 128 }; /* products to a reduction: 255 and a rest fit 128 bits */

/* x modulo q, for any x, given floor(2^128 / q) as two words. Barrett: floor(x * reciprocal / 2^128) is too small by at
 * most 1, for before it is rounded down it is below x / q by x / 2^128 * (2^128 / q - reciprocal) < 1. So the rest is
 * below 2 * q, below 2^61, and its low word is all of it. */
static inline uint64_t reduce_wide(secagg_wide x, uint64_t q, uint64_t low, uint64_t high)
{
    const uint64_t x0 = (uint64_t)x, x1 = (uint64_t)(x >> 64);
    /* A product of two words and one more word fit 128 bits. */
    const secagg_wide first = (secagg_wide)x0 * high + (uint64_t)((secagg_wide)x0 * low >> 64);
    const secagg_wide second = (secagg_wide)x1 * low + (uint64_t)first;
    const uint64_t quotient = x1 * high + (uint64_t)(first >> 64) + (uint64_t)(second >> 64);
    const uint64_t rest = x0 - quotient * q - q;
    return rest + (q & top_mask(rest));
}

/* state + alpha * (the sum of words[i] * beta[i]) modulo q, for the n words of a row, a multiple of 4. Two sums take
 * turns: one alone waits for its carry, and took 1.4 times as long. */
static uint64_t add_row(uint64_t state, uint64_t alpha, const uint64_t *words, const uint64_t *beta, ptrdiff_t n,
                        uint64_t q, uint64_t low, uint64_t high)
{
    uint64_t rest = 0;
    for (ptrdiff_t at = 0; at < n; at += BATCH) {
        const ptrdiff_t end = n - at < BATCH ? n : at + BATCH;
        secagg_wide even = rest, odd = 0;
        for (ptrdiff_t i = at; i < end; i += 4) {
            even += (secagg_wide)words[i] * beta[i];
            odd += (secagg_wide)words[i + 1] * beta[i + 1];
            even += (secagg_wide)words[i + 2] * beta[i + 2];
            odd += (secagg_wide)words[i + 3] * beta[i + 3];
        }
        rest = reduce_wide(even + odd, q, low, high);
    }
    return reduce_wide((secagg_wide)alpha * rest + state, q, low, high);
}
#endif
