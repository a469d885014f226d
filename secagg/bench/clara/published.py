"""What NVIDIA has published of Clara Train 4.0.

H. Roth, M. Zephyr, A. Harouni: Federated Learning with Homomorphic Encryption. NVIDIA Technical Blog, June 2021. It is
MONAI's SegResNet on CT of the spleen, 100 rounds of 10 epochs on V100 GPUs, under CKKS by TenSEAL.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SOURCE = "NVIDIA Technical Blog, June 2021: Federated Learning with Homomorphic Encryption"

_ROUNDS = 100


@dataclass(frozen=True)
class Published:
    """A row of the table: the best Dice was that of an epoch of 1000."""

    time: str
    dice: float
    epoch: int
    increase: float | None = None

    @property
    def seconds(self) -> int:
        """Of the whole training."""
        hours, minutes, seconds = map(int, self.time.split(":"))
        return (hours * 60 + minutes) * 60 + seconds


#: MB of a site's message, by setting.
MESSAGE_MB: Mapping[str, int] = {"raw": 19, "full": 283, "conv": 272, "three": 43}

#: By setting and number of sites; the increase is in per cent.
TABLE: Mapping[str, Mapping[int, Published]] = {
    "raw": {
        2: Published("4:57:26", 0.951, 931),
        4: Published("5:11:20", 0.956, 931),
        8: Published("5:18:00", 0.943, 901),
    },
    "full": {
        2: Published("5:57:05", 0.949, 931, 20.1),
        4: Published("6:00:05", 0.946, 811, 15.7),
        8: Published("6:21:56", 0.963, 971, 20.1),
    },
    "conv": {
        2: Published("5:54:39", 0.952, 891, 19.2),
        4: Published("6:06:13", 0.954, 951, 17.6),
        8: Published("6:28:16", 0.948, 891, 22.1),
    },
    "three": {
        2: Published("5:12:10", 0.957, 811, 5.0),
        4: Published("5:15:01", 0.939, 841, 1.2),
        8: Published("5:19:02", 0.949, 971, 0.3),
    },
}

#: Seconds of the raw round of two sites, beside which encryption counts: 178.
ROUND_SECONDS = TABLE["raw"][2].seconds / _ROUNDS

#: Of 30 sites, in seconds: mean and standard deviation, by setting and step.
MANY: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "raw": {"upload": (21.57, 74.23)},
    "full": {"encrypt": (5.01, 1.18), "upload": (38.00, 71.70), "decrypt": (0.95, 0.04)},
}
