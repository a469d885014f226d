/* What seeded ciphertexts need: words sampled from a byte stream, added to rows; and one mask exchanged for another
 * under the secret key. Moduli are from 2 to 2^61, so that sums and differences of words have bits to spare.
 */
#ifndef SECAGG_EXT_SEEDS_H
#define SECAGG_EXT_SEEDS_H

#include <stddef.h>
#include <stdint.h>

#include "clones.h"
#include "wide.h"

enum { BATCH = 128 }; /* candidates that are checked, then added: 1 KiB, which stay in the first cache */

/* x + y modulo q, both below it. */
static inline uint64_t add_modulo(uint64_t x, uint64_t y, uint64_t q)
{
    const uint64_t sum = x + y, rest = sum - q; /* wraps, to more than the sum, if there is nothing to subtract */
    return rest < sum ? rest : sum;
}

/* Adds the first `n` of `count` candidates whose low bits, under `mask`, are within the limit to the row. Returns how
 * many were found: less than `n` if there are too few. Candidates are public: time depends on which are over. */
SECAGG_CLONES
static ptrdiff_t add_region(uint64_t *row, ptrdiff_t n, const uint64_t *candidates, ptrdiff_t count, uint64_t limit,
                            uint64_t mask)
{
    ptrdiff_t found = 0, at = 0;
    while (found < n && at < count) {
        const uint64_t *batch = candidates + at;
        uint64_t *words = row + found, borrow = 0; /* its top bit: some candidate is over the limit */
        ptrdiff_t size = BATCH;
        if (size > n - found)
            size = n - found;
        if (size > count - at)
            size = count - at;
        for (ptrdiff_t i = 0; i < size; i++)
            borrow |= limit - (batch[i] & mask);
        if (borrow >> 63) {
            ptrdiff_t kept = 0;
            for (ptrdiff_t i = 0; i < size; i++) {
                if ((batch[i] & mask) > limit)
                    continue;
                words[kept] = add_modulo(words[kept], batch[i] & mask, limit + 1);
                kept++;
            }
            found += kept;
        } else {
            for (ptrdiff_t i = 0; i < size; i++)
                words[i] = add_modulo(words[i], batch[i] & mask, limit + 1);
            found += size;
        }
        at += size;
    }
    return found;
}

/* c0 + (c1 - mask) * secret modulo q over a row, into c0, for words below q and q from 2 to 2^61, in constant time.
 *
 * Barrett's reduction of p = c0 + difference * secret < q^2. Let b be the bits of q - 1, shift = max(b - 2, 0) and
 * reciprocal = floor(2^(64 + shift) / q), which fits 64 bits. The estimate of p / q below is too small by less than 1
 * before it is rounded down: dropping bits of p costs less than 2^shift / q <= 1/2 (nothing if shift is 0), those of
 * the reciprocal less than p / 2^(64 + shift) <= 2^(b - 62) <= 1/2. So the rest is below 2 * q, below 2^62. */
static void replace_row(uint64_t *c0, const uint64_t *c1, const uint64_t *mask, const uint64_t *secret, ptrdiff_t n,
                        uint64_t q, uint64_t reciprocal, unsigned shift)
{
    for (ptrdiff_t i = 0; i < n; i++) {
        uint64_t difference = c1[i] - mask[i];
        difference += q & top_mask(difference);
        const secagg_wide product = (secagg_wide)difference * secret[i] + c0[i];
        const uint64_t quotient = (uint64_t)((secagg_wide)(uint64_t)(product >> shift) * reciprocal >> 64);
        const uint64_t rest = (uint64_t)product - quotient * q - q;
        c0[i] = rest + (q & top_mask(rest));
    }
}
#endif
