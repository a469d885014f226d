"""What both sides of a job share: where a party finds its kit, and how a handout travels."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from secagg.errors import ConfigError, FormatError, KeyFileError
from secagg.protocol import Handout

from . import framework as nvflare

#: A kit's folder in NVFlare's, a site's file, the keys of its reply, and the task that brings the last global model.
FOLDER, STATE, UPDATE, STORED, FINAL = "secagg", "secagg.state", "secagg.update", "secagg.model", "secagg_final"

_PARTS = {"secagg.facts": dict, "secagg.blobs": dict, "secagg.first": dict, "secagg.stores": str}


def find_kit(fl_ctx: nvflare.FLContext, name: str) -> Path:
    """Return the folder of a party's kit, which no job can name: whoever submits the job would choose the keys."""
    if os.environ.get("SECAGG_SIMULATION") != "1":
        if not (folder := Path(fl_ctx.get_workspace().get_startup_kit_dir(), FOLDER)).exists():
            raise KeyFileError(f"no {folder}: SecAggBuilder makes it; a simulation has SECAGG_SIMULATION=1, SECAGG_KIT")
        return folder
    if "{site}" not in (place := os.environ.get("SECAGG_KIT", "")):
        raise ConfigError(f"SECAGG_KIT is {place!r}; with SECAGG_SIMULATION=1, name the kits: /path/of/kits/{{site}}")
    return Path(place.replace("{site}", name))


def job_folder(fl_ctx: nvflare.FLContext) -> Path:
    """Return a party's folder of the job that runs."""
    return Path(fl_ctx.get_workspace().get_run_dir(fl_ctx.get_job_id()))


def pack(handout: Handout, first: Mapping[str, Any], stores: str) -> dict[str, Any]:
    """Return a handout as parameters for all sites, with the first model if one may need it, and who is to store."""
    arrays = {name: np.asarray(value) for name, value in first.items()} if handout.first else {}
    return dict(zip(_PARTS, (handout.facts(), handout.blobs(), arrays, stores), strict=True))


def unpack(packed: Any) -> tuple[Handout, dict[str, Any], str]:
    """Return what `pack` was given; `FormatError` if it is something else, such as a model in the clear."""
    if not isinstance(packed, dict) or {key: type(value) for key, value in packed.items()} != _PARTS:
        raise FormatError("the task holds no SecAgg handout; the server needs SecAggPersistor and SecAggAggregator")
    facts, blobs, first, stores = (packed[key] for key in _PARTS)
    return Handout.from_parts(facts, blobs), first, stores
