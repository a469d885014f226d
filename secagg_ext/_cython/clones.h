/* Functions compiled for several generations of a processor. */
#ifndef SECAGG_EXT_CLONES_H
#define SECAGG_EXT_CLONES_H

/* The loader chooses: same bits, for no product is ever fused with a
 * sum (-ffp-contract=off). Needs a C library whose loader does that. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define SECAGG_CLONES __attribute__((flatten, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SECAGG_CLONES
#endif
#endif
