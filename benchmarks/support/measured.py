"""Every ``he`` block that is measured, by name."""

from __future__ import annotations

from typing import Any

#: Those of NVIDIA Clara Train.
CLARA = {"poly_modulus_degree": 8192, "coeff_mod_bit_sizes": [60, 40, 40], "scale_bits": 40, "scheme": "CKKS"}
#: For sums only: one data prime, which is all that an addition needs.
SUMS = {"poly_modulus_degree": 4096, "scale_bits": 34, "scheme": "CKKS", "complex_slots": True}
#: Every ``he`` block that is measured.
BACKENDS: dict[str, dict[str, Any]] = {
    "tenseal": {"lib": "tenseal", "config": CLARA},
    "seal": {"lib": "seal", "config": CLARA},
    "pyfhel": {"lib": "pyfhel", "config": CLARA},
    "tenseal-sums": {"lib": "tenseal", "config": SUMS | {"coeff_mod_bit_sizes": [45]}},
    "seal-sums": {"lib": "seal", "config": SUMS | {"coeff_mod_bit_sizes": [45]}},
    "pyfhel-sums": {"lib": "pyfhel", "config": SUMS | {"coeff_mod_bit_sizes": [45, 45]}},
    "seal-bgv-16": {"lib": "seal", "config": {"scheme": "BGV", "value_bits": 16}},
    "seal-bgv-10": {"lib": "seal", "config": {"scheme": "BGV", "value_bits": 10, "error_feedback": True}},
    "pyfhel-bgv-16": {"lib": "pyfhel", "config": {"scheme": "BGV", "value_bits": 16}},
    "flashe-16": {"lib": "flashe", "config": {"value_bits": 16}},
    "flashe-11": {"lib": "flashe", "config": {"value_bits": 11, "error_feedback": True}},
}
