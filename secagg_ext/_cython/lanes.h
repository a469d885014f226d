/* Floats quantised into lanes of words, and lane sums back to floats.
 *
 * A block is `n` words; row l of a block is lane l of all its words. Values in the order of their positions fill row
 * after row, so that the values of a stretch within a row have one shift and lie in neighbouring words: every inner
 * loop below is a plain one that compilers vectorise. Doubles become integers and integers doubles by their bits:
 * beside 1.5 * 2^52 a double's last place is 1, so the sum rounds to nearest even, and its bits count in ones.
 */
#ifndef SECAGG_EXT_LANES_H
#define SECAGG_EXT_LANES_H

#include <float.h>
#include <math.h>
#include "clones.h"
#include "floats.h"

#if defined(__GNUC__)
#define LANES_INLINE static inline __attribute__((always_inline))
#else
#define LANES_INLINE static inline
#endif

enum { STRETCH = 1024 }; /* values held as doubles at a time: 8 KiB, which stay in the first cache */

struct lane_layout {
    ptrdiff_t n, lanes;
    unsigned bits;
};

struct lane_quantiser {
    struct lane_layout layout;
    uint64_t start; /* absolute position of the first value of the first block */
    uint64_t seed;
    int seeded;
    double limit;
};

/* How the values of one tensor become integers. */
struct lane_scale {
    double factor, step, cap;
};

struct lane_reader {
    struct lane_layout layout;
    uint64_t largest, offset;
};

/* The part of a row that the next values meet. */
struct row_part {
    ptrdiff_t word, count;
    unsigned shift;
    int top; /* in the topmost lane */
};

static const double ONES = 6755399441055744.0; /* 1.5 * 2^52 */

LANES_INLINE uint64_t bits_of_double(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

LANES_INLINE double double_of(uint64_t bits)
{
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Where position `at`, counted from the first block, lies, and how many of the next `count` follow there. */
LANES_INLINE struct row_part part_of_row(const struct lane_layout *layout, ptrdiff_t at, ptrdiff_t count)
{
    const ptrdiff_t row = at / layout->n, within = at % layout->n, lane = row % layout->lanes;
    const ptrdiff_t room = layout->n - within < STRETCH ? layout->n - within : STRETCH;
    struct row_part part;
    part.word = row / layout->lanes * layout->n + within;
    part.count = count < room ? count : room;
    part.shift = (unsigned)lane * layout->bits;
    part.top = lane == layout->lanes - 1;
    return part;
}

/* SplitMix64: output number `counter` of the generator that started at `seed`. */
LANES_INLINE uint64_t split_mix(uint64_t seed, uint64_t counter)
{
    uint64_t h = seed + counter * 0x9E3779B97F4A7C15u;
    h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9u;
    h = (h ^ h >> 27) * 0x94D049BB133111EBu;
    return h ^ h >> 31;
}

/* Random words of 32 bits for positions `at` and on, rounded down to an even one: one output for two positions, the
 * lower half first, as it lies in memory. */
LANES_INLINE void draw_noise(uint64_t seed, uint64_t at, ptrdiff_t count, uint32_t *noise)
{
    const uint64_t first = at / 2 + 1;
    const ptrdiff_t pairs = (count + (ptrdiff_t)(at & 1) + 1) / 2;
    for (ptrdiff_t i = 0; i < pairs; i++) {
        const uint64_t h = split_mix(seed, first + (uint64_t)i);
        noise[2 * i] = (uint32_t)h;
        noise[2 * i + 1] = (uint32_t)(h >> 32);
    }
}

LANES_INLINE double clamp(double value, double bound)
{
    value = value > -bound ? value : -bound;
    return value < bound ? value : bound;
}

/* Quantises one part of a row. The flags are constants where this is inlined. */
LANES_INLINE uint64_t quantise_part(const double *wide, const uint32_t *noise, float *residuals, ptrdiff_t count,
                                    const struct lane_scale *scale, double limit, uint64_t *words, unsigned shift,
                                    int seeded, int fed_back, int first_lane)
{
    const uint64_t zero = bits_of_double(ONES) - (uint64_t)limit;
    const double factor = scale->factor, step = scale->step, inverse = 1 / step, cap = scale->cap, whole = ceil(cap);
    const double room = !fed_back ? cap : whole < limit ? whole : limit, most = fed_back ? cap + 1 : cap;
    uint64_t clipped = 0;
    for (ptrdiff_t i = 0; i < count; i++) {
        const double x = wide[i] * factor, y = fed_back ? x + (double)residuals[i] : x, z = y * inverse;
        double q;
        uint64_t lane;
        clipped += !(fabs(z) <= most);
        q = clamp(z == z ? z : 0.0, room);
        if (seeded) /* (r + 1/2) * 2^-24 - 1/2, exactly */
            q += ((double)(int32_t)(noise[i] >> 8) - 8388607.5) * 0x1p-24;
        q = clamp(q, limit) + ONES;
        lane = bits_of_double(q) - zero;
        if (fed_back) { /* a mask of bits, for a choice would become a branch */
            const double left = y - (q - ONES) * step;
            const uint64_t fits = (uint64_t)0 - (fabs(left) <= FLT_MAX);
            residuals[i] = (float)double_of(bits_of_double(left) & fits);
        }
        words[i] = first_lane ? lane : words[i] | lane << shift;
    }
    return clipped;
}

/* Quantises `count` values of one tensor, to position `at` of the blocks and on. `residuals` may be null. Returns how
 * many values are clipped. Lanes of a word must be written lowest first. */
SECAGG_CLONES
static uint64_t quantise_values(const struct lane_quantiser *to, const void *values, enum tensor_dtype dtype,
                                float *residuals, ptrdiff_t count, ptrdiff_t at, const struct lane_scale *scale,
                                uint64_t *words)
{
    const uint8_t *octets = values;
    const size_t itemsize = size_of_dtype(dtype);
    double wide[STRETCH];
    uint32_t random[STRETCH + 2];
    uint64_t clipped = 0;
    while (count) {
        const struct row_part part = part_of_row(&to->layout, at, count);
        const uint64_t position = to->start + (uint64_t)at;
        const uint32_t *noise = random + (position & 1);
        uint64_t *into = words + part.word;
        widen(octets, dtype, part.count, wide);
        if (to->seeded)
            draw_noise(to->seed, position, part.count, random);
#define QUANTISE(seeded, fed_back, first_lane) \
    quantise_part(wide, noise, residuals, part.count, scale, to->limit, into, part.shift, seeded, fed_back, first_lane)
        if (to->seeded && residuals)
            clipped += part.shift ? QUANTISE(1, 1, 0) : QUANTISE(1, 1, 1);
        else if (to->seeded)
            clipped += part.shift ? QUANTISE(1, 0, 0) : QUANTISE(1, 0, 1);
        else if (residuals)
            clipped += part.shift ? QUANTISE(0, 1, 0) : QUANTISE(0, 1, 1);
        else
            clipped += part.shift ? QUANTISE(0, 0, 0) : QUANTISE(0, 0, 1);
#undef QUANTISE
        octets += (size_t)part.count * itemsize;
        if (residuals)
            residuals += part.count;
        at += part.count;
        count -= part.count;
    }
    return clipped;
}

/* Zeros, which are stored as the limit, to positions `at` … `at + count - 1` of the blocks. */
static void quantise_padding(const struct lane_quantiser *to, ptrdiff_t count, ptrdiff_t at, uint64_t *words)
{
    const uint64_t zero = (uint64_t)to->limit;
    while (count) {
        const struct row_part part = part_of_row(&to->layout, at, count);
        uint64_t *into = words + part.word;
        for (ptrdiff_t i = 0; i < part.count; i++)
            into[i] = part.shift ? into[i] | zero << part.shift : zero;
        at += part.count;
        count -= part.count;
    }
}

/* Index of the first lane sum over `largest`, which is below 2^63, or -1. `mask` cuts the words above the lane. */
LANES_INLINE ptrdiff_t first_over(const uint64_t *words, ptrdiff_t count, unsigned shift, uint64_t mask,
                                  uint64_t largest)
{
    uint64_t over = 0; /* its top bit: some sum is over */
    ptrdiff_t i;
    for (i = 0; i < count; i++) {
        const uint64_t sum = words[i] >> shift & mask;
        over |= (largest - sum) | sum;
    }
    if (!(over >> 63))
        return -1;
    for (i = 0; (words[i] >> shift & mask) <= largest; i++)
        ;
    return i;
}

/* Index of the first lane sum that is not `expected`, or -1. */
LANES_INLINE ptrdiff_t first_other(const uint64_t *words, ptrdiff_t count, unsigned shift, uint64_t mask,
                                   uint64_t expected)
{
    ptrdiff_t i = 0;
    while (i < count && (words[i] >> shift & mask) == expected)
        i++;
    return i < count ? i : -1;
}

/* Reads `count` lane sums from position `at` of the blocks on, into one tensor, or, if `values` is null, nowhere: they
 * are padding. Returns the first of these positions with a sum over the largest, or in padding with one that is not
 * the offset; or -1. */
SECAGG_CLONES
static ptrdiff_t dequantise_values(const struct lane_reader *from, const uint64_t *words, ptrdiff_t at,
                                   ptrdiff_t count, double factor, enum tensor_dtype dtype, void *values)
{
    const unsigned bits = from->layout.bits;
    const uint64_t mask = ~(uint64_t)0 >> (64 - bits), offset = from->offset;
    const uint64_t shifted = bits_of_double(ONES) - offset;
    const size_t itemsize = size_of_dtype(dtype);
    uint8_t *octets = values;
    double wide[STRETCH];
    ptrdiff_t found = -1;
    while (count) {
        const struct row_part part = part_of_row(&from->layout, at, count);
        const uint64_t *sums = words + part.word;
        if (found < 0) {
            /* Bits above all lanes count as bits of the topmost one. */
            const uint64_t cut = part.top ? ~(uint64_t)0 : mask;
            const ptrdiff_t i = octets ? first_over(sums, part.count, part.shift, cut, from->largest)
                                       : first_other(sums, part.count, part.shift, cut, offset);
            if (i >= 0)
                found = at + i;
        }
        if (octets) {
            if (bits <= 50 && offset >> 50 == 0) /* the difference is within what ONES holds */
                for (ptrdiff_t i = 0; i < part.count; i++)
                    wide[i] = double_of((sums[i] >> part.shift & mask) + shifted) - ONES;
            else
                for (ptrdiff_t i = 0; i < part.count; i++)
                    wide[i] = (double)(int64_t)((sums[i] >> part.shift & mask) - offset);
            narrow_doubles(wide, factor, dtype, part.count, octets);
            octets += (size_t)part.count * itemsize;
        }
        at += part.count;
        count -= part.count;
    }
    return found;
}
#endif
