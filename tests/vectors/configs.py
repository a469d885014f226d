"""The configurations of the vectors, and what sites send under them."""

from __future__ import annotations

from typing import Any

CKKS = {
    "scheme": "CKKS",
    "poly_modulus_degree": 2048,
    "coeff_mod_bit_sizes": [27, 26],
    "scale_bits": 20,
    "complex_slots": False,
    "seeded": False,
}
#: A ciphertext of few bytes: what most faults are in.
SMALL_CKKS = CKKS | {"poly_modulus_degree": 1024, "coeff_mod_bit_sizes": [23], "scale_bits": 18, "seeded": True}
BGV = {
    "scheme": "BGV",
    "poly_modulus_degree": 2048,
    "coeff_mod_bit_sizes": [53],
    "plain_modulus_bits": 30,
    "value_bits": 12,
    "rounding": "nearest",
    "overflow": "error",
    "error_feedback": False,
    "seeded": True,
}
SMALL_BGV = BGV | {
    "poly_modulus_degree": 1024,
    "coeff_mod_bit_sizes": [23],
    "plain_modulus_bits": 14,
    "value_bits": 10,
}
FLASHE = {
    "scheme": "FLASHE",
    "value_bits": 11,
    "rounding": "stochastic",
    "overflow": "error",
    "error_feedback": False,
}


#: What goes with scales that are measured.
MEASURED = {"rounding": "nearest", "overflow": "clip", "error_feedback": True}


def settings(lib: str, params: dict[str, Any], encrypt: Any = "all", **numbers: Any) -> dict[str, Any]:
    """A configuration; `numbers` are others than those of fixed scales."""
    fixed = {"precision": "fixed", "max_abs": 1.0, "max_weight": 100.0}
    aggregation = {"min_clients": 2, "max_clients": 4} | fixed | numbers
    he = {"lib": lib, "config": params}
    return {"he": he, "encrypt": encrypt, "stay": [], "nonnegative": [], "aggregation": aggregation}


def measured(precision: str, max_weight: float | None = None) -> dict[str, Any]:
    """Numbers of scales that are measured."""
    return {"precision": precision, "max_abs": None, "max_weight": max_weight}


CONFIGS = {
    "all": settings("tenseal", SMALL_CKKS),
    "partly": settings("tenseal", SMALL_CKKS, {"exclude": ["head.bias"]}),
    "whole": settings("tenseal", CKKS),
    "seeded": settings("tenseal", CKKS | {"seeded": True}),
    "complex": settings("seal", CKKS | {"complex_slots": True, "seeded": True}),
    "bgv": settings("seal", BGV),
    "bgv-whole": settings("pyfhel", BGV | {"seeded": False}),
    "bgv-partly": settings("seal", SMALL_BGV, {"exclude": ["head.bias", "scale"]}),
    "signed": settings("seal", SMALL_BGV),
    "flashe": settings("flashe", FLASHE),
    "auto": settings("flashe", FLASHE | MEASURED | {"value_bits": 8}, {"exclude": ["head.bias"]}, **measured("auto")),
    "bgv-auto": settings("seal", SMALL_BGV | MEASURED | {"value_bits": 6}, **measured("auto")),
    "previous": settings(
        "flashe",
        FLASHE | MEASURED | {"value_bits": 6},
        {"exclude": ["norm.running_var"]},
        **measured("previous", 100.0),
    ),
}
#: Who can decrypt: all that know the scheme and, of seeded updates, encrypt symmetrically.
LIBS = {
    "all": ["tenseal", "seal"],
    "partly": ["tenseal", "seal"],
    "whole": ["tenseal", "pyfhel", "seal"],
    "seeded": ["tenseal", "seal"],
    "complex": ["seal"],
    "bgv": ["seal"],
    "bgv-whole": ["pyfhel", "seal"],
    "bgv-partly": ["seal"],
    "signed": ["seal"],
    "flashe": ["flashe"],
    "auto": ["flashe"],
    "bgv-auto": ["seal"],
    "previous": ["flashe"],
}
#: Those whose first base is that of a first model, and the one with a project, a receipt and models besides.
BASED, PROJECT = ("bgv-partly", "signed", "auto", "bgv-auto", "previous"), "signed"
#: Those with calibrations, and the one whose scales follow from the round before.
CALIBRATED, FOLLOWING = ("auto", "bgv-auto"), "previous"
#: The bins of that round: of some tensors far above what is measured, of others below.
BEFORE = (120, 100, 107, 103, 111, 105)
#: Values of a tensor that reaches the second block or the second lane.
RAMPS = {"seeded": 1100, "complex": 2100, "bgv": 2200, "bgv-whole": 2200, "flashe": 4200}
RAMPS |= {"auto": 4200, "bgv-auto": 1100, "previous": 4200}
ROUND, EPOCH = 7, 2
STATES = {
    "site-1": {"conv.weight": [[0.5, -0.25], [1.0, -1.0]], "head.bias": [0.75, -0.125, 0.0], "scale": 0.5, "empty": []},
    "site-2": {"conv.weight": [[-0.5, 0.25], [1.0, 0.5]], "head.bias": [0.25, 0.875, 1.0], "scale": -1.0, "empty": []},
}
#: One more, which is never negative.
STATES["site-1"]["norm.running_var"], STATES["site-2"]["norm.running_var"] = [0.25, 1.0], [0.75, 0.5]
DTYPES = {"conv.weight": "float32", "head.bias": "float64", "scale": "float16", "empty": "float32", "ramp": "float64"}
DTYPES |= {"norm.running_var": "float32"}
#: Configurations whose first tensor has a second name.
TIED = {"bgv-partly": {"tied.weight": "conv.weight"}}
WEIGHTS = {"site-1": 10.0, "site-2": 30.0}


def state_of(config: str, site: str) -> dict[str, Any]:
    """The tensors of a site."""
    ramp = [((37 * index) % 257 - 128) / 128 for index in range(RAMPS.get(config, 0))]
    factor = {"site-1": 1.0, "site-2": -0.5}[site]
    return STATES[site] | ({"ramp": [factor * value for value in ramp]} if ramp else {})


def arrays_of(config: str, site: str) -> dict[str, Any]:
    """The tensors of a site as arrays, tied ones under all their names."""
    import numpy as np

    arrays = {tensor: np.array(value, DTYPES[tensor]) for tensor, value in state_of(config, site).items()}
    return arrays | {name: arrays[first] for name, first in TIED.get(config, {}).items()}


def mix(values: list[Any]) -> Any:
    """The weighted mean of nested lists."""
    if isinstance(values[0], list):
        return [mix(list(inner)) for inner in zip(*values, strict=True)]
    total = sum(WEIGHTS.values())
    return sum(weight * value for weight, value in zip(WEIGHTS.values(), values, strict=True)) / total


def count(value: Any) -> int:
    return sum(map(count, value)) if isinstance(value, list) else 1
