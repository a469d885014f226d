/* A polynomial over 64-bit words, modulo p = 2^127 - 1, in constant time: no branch, no address and no division
 * depends on a word, the point or the state.
 */
#ifndef SECAGG_EXT_MACS_H
#define SECAGG_EXT_MACS_H

#include <stddef.h>

#include "wide.h"

#if defined(__x86_64__)
#define SECAGG_AVX2
#include <immintrin.h>
#endif

/* Words to a reduction. Their powers take 14 KiB, which stay in the first cache, and the products that one lane of four
 * adds up, 64 of 32 and 26 bits, fit 64 bits. */
enum { BATCH = 256, LANES = 4, LIMBS = 5, LIMB_BITS = 26 };

/* Powers of a point, the first one last. */
struct powers {
    _Alignas(64) uint64_t low[BATCH], high[BATCH]; /* halves, of 64 and 63 bits */
    uint64_t limbs[LIMBS][BATCH];                  /* limbs of 26 bits, from the lowest, for words in lanes */
};

/* low + middle * 2^64 + high * 2^128, below 2^254 + 2^191 * BATCH. `low` and `middle` may hold carries to the next. */
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

/* Adds the last `count` words of a batch, of which `words` is the first, times their powers. Never inlined: there the
 * sums would not stay in registers, and it ran half as fast. */
__attribute__((noinline))
static void add_products(struct columns *total, const uint64_t *words, const struct powers *powers, ptrdiff_t count)
{
    const uint64_t *low = powers->low + BATCH - count, *high = powers->high + BATCH - count;
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

/* Whether the processor multiplies in lanes. */
static int has_lanes(void)
{
#ifdef SECAGG_AVX2
    return !!__builtin_cpu_supports("avx2");
#else
    return 0;
#endif
}

#ifdef SECAGG_AVX2
/* The sum of the lanes of x + 2^26 * y + 2^52 * z, below 2^119. */
__attribute__((target("avx2")))
static inline secagg_wide add_lanes(__m256i x, __m256i y, __m256i z)
{
    uint64_t lanes[3][LANES];
    _mm256_storeu_si256((__m256i *)lanes[0], x);
    _mm256_storeu_si256((__m256i *)lanes[1], y);
    _mm256_storeu_si256((__m256i *)lanes[2], z);
    secagg_wide sums[3] = {0, 0, 0};
    for (int i = 0; i < 3; i++)
        for (int lane = 0; lane < LANES; lane++)
            sums[i] += lanes[i][lane];
    return sums[0] + (sums[1] << LIMB_BITS) + (sums[2] << 2 * LIMB_BITS);
}

/* As `add_products`, for a multiple of 4 words, which are followed by `after` words of the batch. */
__attribute__((noinline, target("avx2")))
static void add_products_in_lanes(struct columns *total, const uint64_t *words, const struct powers *powers,
                                  ptrdiff_t count, ptrdiff_t after)
{
    const ptrdiff_t first = BATCH - after - count;
    const __m256i zero = _mm256_setzero_si256();
    /* Sums of low halves of words times limbs, and of high halves. */
    __m256i low[LIMBS] = {zero, zero, zero, zero, zero}, high[LIMBS] = {zero, zero, zero, zero, zero};
    for (ptrdiff_t i = 0; i < count; i += LANES) {
        const __m256i word = _mm256_loadu_si256((const __m256i *)(words + i)), top = _mm256_srli_epi64(word, 32);
        for (int limb = 0; limb < LIMBS; limb++) {
            const __m256i factor = _mm256_loadu_si256((const __m256i *)(powers->limbs[limb] + first + i));
            low[limb] = _mm256_add_epi64(low[limb], _mm256_mul_epu32(word, factor));
            high[limb] = _mm256_add_epi64(high[limb], _mm256_mul_epu32(top, factor));
        }
    }
    /* The sum is a + b * 2^78 + c * 2^32 + d * 2^110. */
    const secagg_wide a = add_lanes(low[0], low[1], low[2]), b = add_lanes(low[3], low[4], zero);
    const secagg_wide c = add_lanes(high[0], high[1], high[2]), d = add_lanes(high[3], high[4], zero);
    total->low += (secagg_wide)(uint64_t)a + (uint64_t)(c << 32);
    total->middle += (a >> 64) + (uint64_t)(b << 14) + (uint64_t)(c >> 32) + (uint64_t)(d << 46);
    total->high += (b >> 50) + (c >> 96) + (d >> 18);
}
#endif

/* The first `count` powers and up to three more. Four at a time, each from the one four before, so that none waits for
 * the one before it. */
static void fill(struct powers *powers, secagg_wide alpha, ptrdiff_t count)
{
    secagg_wide next[LANES] = {alpha};
    for (int i = 1; i < LANES; i++)
        next[i] = reduce(multiply(next[i - 1], alpha));
    const secagg_wide step = next[LANES - 1];
    for (ptrdiff_t first = BATCH - LANES; first > BATCH - LANES - count; first -= LANES) {
        for (int i = 0; i < LANES; i++) {
            const ptrdiff_t at = first + LANES - 1 - i;
            powers->low[at] = (uint64_t)next[i];
            powers->high[at] = (uint64_t)(next[i] >> 64);
            for (int limb = 0; limb < LIMBS; limb++)
                powers->limbs[limb][at] = (uint64_t)(next[i] >> LIMB_BITS * limb) & ((1 << LIMB_BITS) - 1);
            next[i] = reduce(multiply(next[i], step));
        }
    }
}

/* For each word in order, state = (state + word) * alpha modulo p. Of `count` words in a batch, word i meets
 * alpha^(count - i), and the state before them alpha^count. Without `lanes`, with the instructions of any processor. */
static void evaluate(const uint64_t *words, ptrdiff_t n, uint64_t alpha_low, uint64_t alpha_high, uint64_t *state,
                     int lanes)
{
    struct powers powers;
    fill(&powers, join(alpha_low, alpha_high), n < BATCH ? n : BATCH);
    secagg_wide sum = join(state[0], state[1]);
    for (ptrdiff_t at = 0; at < n; at += BATCH) {
        const ptrdiff_t count = n - at < BATCH ? n - at : BATCH;
        struct columns total = multiply(sum, join(powers.low[BATCH - count], powers.high[BATCH - count]));
        ptrdiff_t after = count; /* words that are not multiplied in lanes */
#ifdef SECAGG_AVX2
        if (lanes) {
            after %= LANES;
            add_products_in_lanes(&total, words + at, &powers, count - after, after);
        }
#endif
        add_products(&total, words + at + count - after, &powers, after);
        sum = reduce(total);
    }
    state[0] = (uint64_t)sum;
    state[1] = (uint64_t)(sum >> 64);
    (void)lanes;
}
#endif
