/* A polynomial over 64-bit words, modulo p = 2^127 - 1, in constant time: no branch, no address and no division
 * depends on a word, the point or the state.
 */
#ifndef SECAGG_EXT_MACS_H
#define SECAGG_EXT_MACS_H

#include <stddef.h>

#include "wide.h"

enum { BATCH = 128 }; /* words to a reduction: their powers take 2 KiB, which stay in the first cache */

/* low + middle * 2^64 + high * 2^128, below 2^254 + 2^191 * BATCH. `low` and `middle` may hold carries into the next. */
struct columns {
    secagg_wide low, middle, high;
};

static inline secagg_wide join(uint64_t low, uint64_t high)
{
    return (secagg_wide)high << 64 | low;
}

/* The number modulo p. 2^127 is 1 modulo p, so that bits from 127 on may be added to those below, until none are left:
 * `above` is below 2^127 + 2^64 * BATCH, the first sum below 2^128, the second one at most p + 1. */
static inline secagg_wide reduce(struct columns x)
{
    const secagg_wide p = ~(secagg_wide)0 >> 1;
    x.middle += x.low >> 64;
    x.high += x.middle >> 64;
    const secagg_wide below = join((uint64_t)x.low, (uint64_t)x.middle), above = x.high << 1 | below >> 127;
    secagg_wide rest = (below & p) + (above & p) + (above >> 127);
    rest = (rest & p) + (rest >> 127);
    return (rest + ((rest + 1) >> 127)) & p; /* p and p + 1 become 0 and 1 */
}

/* x * y, both at most p, with nothing left to carry. */
static inline struct columns multiply(secagg_wide x, secagg_wide y)
{
    const uint64_t x0 = (uint64_t)x, x1 = (uint64_t)(x >> 64), y0 = (uint64_t)y, y1 = (uint64_t)(y >> 64);
    const secagg_wide low = (secagg_wide)x0 * y0;
    /* Each product is at most (2^63 - 1) * (2^64 - 1), so that two and what is carried fit 128 bits. */
    const secagg_wide middle = (secagg_wide)x0 * y1 + (secagg_wide)x1 * y0 + (low >> 64);
    return (struct columns){(uint64_t)low, (uint64_t)middle, (secagg_wide)x1 * y1 + (middle >> 64)};
}

/* Adds the words times as many powers, at most BATCH, given as their halves. Never inlined: there the sums would not
 * stay in registers, and it ran half as fast. */
__attribute__((noinline))
static void add_products(struct columns *total, const uint64_t *words, const uint64_t *low, const uint64_t *high,
                         ptrdiff_t count)
{
    secagg_wide lows = 0, highs = 0; /* sums of words times low halves, and times high halves, modulo 2^128 */
    uint64_t lows_carried = 0, highs_carried = 0;
    for (ptrdiff_t i = 0; i < count; i++) {
        const secagg_wide x = (secagg_wide)words[i] * low[i], y = (secagg_wide)words[i] * high[i];
        lows += x;
        lows_carried += lows < x;
        highs += y;
        highs_carried += highs < y;
    }
    total->low += (uint64_t)lows;
    total->middle += (lows >> 64) + (uint64_t)highs;
    total->high += (highs >> 64) + lows_carried + join(0, highs_carried);
}

/* For each word in order, state = (state + word) * alpha modulo p. Of `count` words in a batch, word i meets
 * alpha^(count - i), and the state before them alpha^count. */
static void evaluate(const uint64_t *words, ptrdiff_t n, uint64_t alpha_low, uint64_t alpha_high, uint64_t *state)
{
    const secagg_wide alpha = join(alpha_low, alpha_high);
    const ptrdiff_t powers = n < BATCH ? n : BATCH;
    uint64_t low[BATCH], high[BATCH]; /* halves of the powers, the first power last */
    secagg_wide power = alpha, sum = join(state[0], state[1]);
    for (ptrdiff_t i = 1; i <= powers; i++) {
        low[BATCH - i] = (uint64_t)power;
        high[BATCH - i] = (uint64_t)(power >> 64);
        power = reduce(multiply(power, alpha));
    }
    for (ptrdiff_t at = 0; at < n; at += BATCH) {
        const ptrdiff_t count = n - at < BATCH ? n - at : BATCH, first = BATCH - count;
        struct columns total = multiply(sum, join(low[first], high[first]));
        add_products(&total, words + at, low + first, high + first, count);
        sum = reduce(total);
    }
    state[0] = (uint64_t)sum;
    state[1] = (uint64_t)(sum >> 64);
}
#endif
