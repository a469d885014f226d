"""A round over links, simulated: from seconds that were measured and bytes that are exact, without any network.

What is assumed:

- Every site has a machine of its own, as fast as the one that measured; all begin to encrypt at the same moment.
- Site and server have links of one speed, full duplex, which they have to themselves and use in full. Of a site's own
  link and the server's, which all share, the server's is then the slower one.
- The server takes as many uploads at a time as its limit says, which share its link evenly, so that they end together;
  the next ones follow at once. It adds one update after another, and while it adds, others arrive.
- It adds as `secagg.Aggregator` does, from files; the transport and a disk that synchronises are not in it.
- When the last one is added, all sites download the sum at the same time, and each decrypts it.
- Training is not in it, nor lost packets, nor a link's delay.

Raw float32 goes the same way: it is not encrypted, and the server adds it by NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What one round costs: bytes of each site, up and down, and seconds.

    Encryption and decryption are of one site, `add_seconds` of one update, `finish_seconds` of the sum.
    """

    up_nbytes: int
    down_nbytes: int
    encrypt_seconds: float
    add_seconds: float
    finish_seconds: float
    decrypt_seconds: float


def round_seconds(cost: Cost, sites: int, bits_per_second: float, at_a_time: int) -> float:
    """Return how long a round takes from the end of training to the new model at every site.

    Parameters
    ----------
    cost : Cost
        With so many sites.
    sites : int
        How many.
    bits_per_second : float
        Of every link.
    at_a_time : int
        How many uploads the server receives at a time.
    """
    added = _all_added(cost, sites, bits_per_second, at_a_time)
    download = sites * _seconds(cost.down_nbytes, bits_per_second)
    return cost.encrypt_seconds + added + cost.finish_seconds + download + cost.decrypt_seconds


def _all_added(cost: Cost, sites: int, bits_per_second: float, at_a_time: int) -> float:
    """Return when the server has added the last update, from when the first one sets out."""
    done = 0.0
    for first in range(0, sites, at_a_time):
        last = min(first + at_a_time, sites)
        arrived = last * _seconds(cost.up_nbytes, bits_per_second)
        done = max(done, arrived) + (last - first) * cost.add_seconds
    return done


def _seconds(nbytes: int, bits_per_second: float) -> float:
    return 8 * nbytes / bits_per_second
