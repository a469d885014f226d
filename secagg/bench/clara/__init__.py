"""The tables of NVIDIA Clara Train 4.0, on one machine: what encryption adds to a round, and what it does to the Dice.

One process is all sites, in turn, so that none waits for another's processor: hospitals have one each. The server of
each encrypted federation is ``secagg serve``, a process of its own, over gRPC with mutual TLS. That of the raw one is a
thread of the sites' process, with plain float32 averaging over the same gRPC and TLS.
"""
