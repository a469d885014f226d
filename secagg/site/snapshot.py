"""A site's global model as bytes, from which a fresh process goes on: a digest, and then NumPy's .npz with a header.

The header, ``header.json``, has the version of this format, round, base, the layout, and which tensors are torch's; the
tensor number `i` of the layout is the array ``<i>.npy``. Nothing is pickled. What a release does not know in a header
it refuses: what is left behind unnoticed could not be missed.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError
from ..wire.container import DIGEST_NBYTES, check_digest, digest, read_hex
from ..wire.header import check_round
from ..wire.layout import Layout, TensorSpec

_VERSION = 1
_HEADER_FILE = "header.json"
_FIELDS = {"version", "round", "base", "layout", "torch"}
_WHAT = b"secagg global model v1"

#: Of what is held: 16-bit floats are held as float32, and bfloat16 is none of NumPy's.
_FLOATS = ("float32", "float64")


@dataclass(frozen=True)
class Snapshot:
    """What `to_bytes` writes and `from_bytes` reads.

    Parameters
    ----------
    round : int
        The round that begins from the model.
    base : bytes
        What training of that round begins from, 32 bytes.
    arrays : mapping of str to ndarray
        The model, in order; floats are float32 or float64.
    torch : frozenset of str
        Names of the tensors that are torch's to their user.
    """

    round: int
    base: bytes
    arrays: Mapping[str, NDArray[Any]]
    torch: frozenset[str]

    def to_bytes(self) -> bytes:
        """Return the whole of it."""
        stream = io.BytesIO()
        stream.write(bytes(DIGEST_NBYTES))
        header = {
            "version": _VERSION,
            "round": self.round,
            "base": self.base.hex(),
            "layout": Layout.of(self.arrays).to_json(),
            "torch": sorted(self.torch),
        }
        with zipfile.ZipFile(stream, "w") as archive:
            with archive.open(_HEADER_FILE, "w") as file:
                file.write(json.dumps(header).encode())
            for index, array in enumerate(self.arrays.values()):
                with archive.open(_name(index), "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)
        with stream.getbuffer() as buffer:
            buffer[:DIGEST_NBYTES] = digest(_WHAT, buffer[DIGEST_NBYTES:])
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, blob: bytes) -> Snapshot:
        """Read it again.

        Raises
        ------
        FormatError
            If it is something else, or of another version (`DigestError` if it is damaged).
        """
        if not isinstance(blob, (bytes, bytearray, memoryview)):
            raise FormatError(f"a global model is stored as bytes, not as {type(blob).__name__}")
        blob = bytes(blob)
        if len(blob) <= DIGEST_NBYTES:
            raise FormatError(f"{len(blob)} bytes are no stored global model")
        actual = digest(_WHAT, memoryview(blob)[DIGEST_NBYTES:])
        check_digest(blob[:DIGEST_NBYTES], actual, "the stored global model")
        try:
            with zipfile.ZipFile(io.BytesIO(blob)) as archive:
                return cls._read(archive, len(blob))
        except FormatError:
            raise
        except Exception as error:  # of an archive that was made to break readers, anything
            raise FormatError(f"no stored global model: {type(error).__name__}") from error

    @classmethod
    def _read(cls, archive: zipfile.ZipFile, limit: int) -> Snapshot:
        """Read an archive; no size that it names above `limit`, that of the whole in bytes, is believed."""
        if archive.getinfo(_HEADER_FILE).file_size > limit:
            raise FormatError("the header of the stored global model is longer than the whole")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):  # bombs cannot be bounded
            raise FormatError("the stored global model is compressed, which none is")
        header = json.loads(archive.read(_HEADER_FILE))
        if not isinstance(header, dict) or header.get("version") != _VERSION or header.keys() != _FIELDS:
            raise FormatError(
                f"the stored global model has another header than one of version {_VERSION}: read it with the release "
                "that wrote it"
            )
        layout = Layout.from_json(header["layout"])
        specs = layout.tensors
        if any(spec.role != "local" and spec.dtype not in _FLOATS for spec in specs):
            raise FormatError(f"the stored global model has floats that are none of {', '.join(_FLOATS)}")
        if sum(spec.size * np.dtype(spec.dtype).itemsize for spec in specs) > limit:
            raise FormatError("the stored global model names more values than it has")
        if set(archive.namelist()) != {_HEADER_FILE, *map(_name, range(len(specs)))}:
            raise FormatError("the stored global model has other files than its header says")
        torch = frozenset(header["torch"])
        if not torch <= {spec.name for spec in specs}:
            raise FormatError("the stored global model names tensors of torch's that it does not have")
        arrays = {spec.name: _read_array(archive, _name(index), spec) for index, spec in enumerate(specs)}
        return cls(check_round(header["round"]), read_hex(header["base"], DIGEST_NBYTES, "the base"), arrays, torch)


def _name(index: int) -> str:
    return f"{index}.npy"


def _read_array(archive: zipfile.ZipFile, name: str, spec: TensorSpec) -> NDArray[Any]:
    """Return an array of the shape and dtype that the header says; only then memory is taken for it."""
    dtype = np.dtype(spec.dtype)
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        found = np.lib.format.read_array_header_1_0(file) if version == (1, 0) else None
        if found != (spec.shape, False, dtype):
            raise FormatError(f"tensor {spec.name!r} of the stored global model is not what its header says")
        data = file.read(spec.size * dtype.itemsize + 1)
    return np.array(np.frombuffer(data, dtype).reshape(spec.shape))  # one that can be written to
