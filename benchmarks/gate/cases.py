"""What the gate times: the same code for both trees, on what is public, so that older bases run it too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from calibrations import Calibration

import secagg
import secagg_ext

CLARA = {"poly_modulus_degree": 8192, "coeff_mod_bit_sizes": [60, 40, 40], "scale_bits": 40, "scheme": "CKKS"}
FIXED = {"min_clients": 2, "max_clients": 30, "max_abs": 8.0, "max_weight": 1.0}
MEASURED = {"min_clients": 2, "max_clients": 30}
#: Of the networks: CKKS takes some ten times as long a value as the others.
NARROW, WIDE = 16, 32

State = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Work:
    """Something to repeat, how many bytes its messages have if it has any, and beside what it stands."""

    run: Callable[[], object]
    nbytes: int | None
    calibration: Calibration


@cache
def model(width: int) -> State:
    """ResNet-20 for CIFAR-10, 97 tensors: of width 16, 0.27 million values; of width 32, 1.08 million."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}.conv.weight"] = (outputs, inputs, 3, 3)
        for kind in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.norm.{kind}"] = (outputs,)

    layer("stem", 3, width)
    inputs = width
    for stage, outputs in enumerate((width, 2 * width, 4 * width)):
        for block in range(3):
            layer(f"stage{stage}.block{block}.one", inputs, outputs)
            layer(f"stage{stage}.block{block}.two", outputs, outputs)
            inputs = outputs
    shapes |= {"head.weight": (10, inputs), "head.bias": (10,)}
    draw = np.random.default_rng(0)
    return {name: draw.normal(0, 0.05, shape).astype(np.float32) for name, shape in shapes.items()}


class Federation:
    """Two sites, what they send, and what the server makes of it.

    Parameters
    ----------
    he, aggregation : dict
        Blocks of the configuration.
    width : int
        Of the network.
    library : str
        What the blocks are of: kind of the calibration.
    """

    def __init__(self, he: dict[str, Any], aggregation: dict[str, Any], width: int, library: str) -> None:
        self.config = secagg.Config.from_dict({"he": he, "aggregation": aggregation})
        self.keys = secagg.generate_keys(self.config)
        self.sites = [secagg.Client(self.config, self.keys.client, f"site-{number}") for number in (1, 2)]
        self.state, self.library = model(width), library

    def add(self, blobs: list[bytes], kind: str = "update") -> secagg.Aggregator:
        aggregator = secagg.Aggregator(self.config, self.keys.server, kind=kind)
        for blob in blobs:
            aggregator.add(secagg.Update.from_bytes(blob))
        return aggregator

    def updates(self) -> list[bytes]:
        return [site.encrypt(self.state).to_bytes() for site in self.sites]

    def scales(self) -> secagg.Update:
        return self.add([site.calibrate(self.state).to_bytes() for site in self.sites], "calibration").finish()

    def calibration(self, step: str, blob: bytes, streams: int = 1) -> Calibration:
        """The keystreams of a message, or what the library alone takes for as many blocks."""
        if self.library == "aes":
            return Calibration("aes", streams * len(blob))
        return Calibration(f"{self.library} {step}", secagg.Update.from_bytes(blob).header.blocks("encrypted"))


#: What makes each federation; made once, by `federation`.
SETTINGS: Mapping[str, Callable[[], Federation]] = {
    "tenseal": partial(Federation, {"lib": "tenseal", "config": CLARA}, FIXED, NARROW, "ckks"),
    "pyfhel": partial(Federation, {"lib": "pyfhel", "config": CLARA}, FIXED, NARROW, "ckks"),
    "seal-bgv-16": partial(
        Federation, {"lib": "seal", "config": {"scheme": "BGV", "value_bits": 16}}, FIXED, WIDE, "bgv"
    ),
    "flashe-16": partial(Federation, {"lib": "flashe", "config": {"value_bits": 16}}, FIXED, WIDE, "aes"),
}
#: Presets whose scales sites measure first.
PRESETS: Mapping[str, Callable[[], Federation]] = {
    "exact": partial(Federation, {"preset": "exact"}, MEASURED, WIDE, "bgv"),
    "smallest": partial(Federation, {"preset": "smallest"}, MEASURED, WIDE, "aes"),
}


@cache
def federation(setting: str) -> Federation:
    return SETTINGS[setting]()


def encrypt(setting: str) -> Work:
    here = federation(setting)
    site = here.sites[0]
    blob = here.updates()[0]
    return Work(lambda: site.encrypt(here.state).to_bytes(), len(blob), here.calibration("encrypt", blob))


def add(setting: str) -> Work:
    """Two updates, read, checked and added, to a new sum each time."""
    here = federation(setting)
    blobs = here.updates()
    nbytes = sum(map(len, blobs))
    return Work(lambda: here.add(blobs), nbytes, Calibration("memcpy", nbytes))


def decrypt(setting: str) -> Work:
    here = federation(setting)
    blob = here.add(here.updates()).finish().to_bytes()
    site = here.sites[0]
    return Work(
        lambda: site.decrypt(secagg.Update.from_bytes(blob), like=here.state),
        len(blob),
        here.calibration("decrypt", blob, streams=2),
    )


def calibrate_encrypt(preset: str) -> Work:
    """The two messages of a site in a round whose scales are measured."""
    here = PRESETS[preset]()
    site, scales = here.sites[0], here.scales()

    def run() -> tuple[bytes, bytes]:
        return site.calibrate(here.state).to_bytes(), site.encrypt(here.state, calibration=scales).to_bytes()

    first, second = run()
    return Work(run, len(first) + len(second), here.calibration("encrypt", second))


def flatten() -> Work:
    sources = [tensor.reshape(-1) for tensor in model(WIDE).values()]
    out = np.empty(sum(source.size for source in sources), np.float32)
    return Work(lambda: secagg_ext.flatten(sources, out), None, Calibration("memcpy", out.nbytes))


def pack_words() -> Work:
    """Thirty-two polynomials of Clara's params."""
    moduli, degree, polynomials = (2**60 - 2**14 + 1, 2**40 - 9 * 2**14 + 1), 8192, 32
    rows = np.tile(np.array(moduli, np.uint64), polynomials)
    draw = np.random.default_rng(0)
    words = draw.integers(0, rows[:, None], (rows.size, degree), np.uint64).reshape(-1)
    out = np.empty(polynomials * secagg_ext.block_nbytes(moduli, degree), np.uint8)
    return Work(lambda: secagg_ext.pack_words(words, moduli, degree, out), None, Calibration("memcpy", out.nbytes))


#: Every benchmark, by name.
CASES: Mapping[str, Callable[[], Work]] = {
    **{f"{step.__name__} {name}": partial(step, name) for name in SETTINGS for step in (encrypt, add, decrypt)},
    **{f"calibrate+encrypt {name}": partial(calibrate_encrypt, name) for name in PRESETS},
    "kernel flatten": flatten,
    "kernel pack_words": pack_words,
}
