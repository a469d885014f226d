"""Arrays with a header as bytes, for what a site keeps: a digest, and then NumPy's .npz with one file more.

``header.json`` is what the kind of thing needs, and its version; array number `i` is ``<i>.npy``. Nothing is pickled.
What a release does not know in a header it refuses: what is left behind unnoticed could not be missed.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError, StateError
from .container import DIGEST_NBYTES, check_digest, digest

_Built = TypeVar("_Built")

_HEADER_FILE = "header.json"


@dataclass(frozen=True)
class ArrayFormat:
    """One kind of thing that is kept.

    Parameters
    ----------
    what : str
        What it is to a user, as "global model".
    purpose : bytes
        What its digest begins with, so that one kind is not read as another.
    version : int
        Of its header.
    fields : frozenset of str
        All that its header has.
    """

    what: str
    purpose: bytes
    version: int
    fields: frozenset[str]

    def pack(self, header: Mapping[str, Any], arrays: Iterable[NDArray[Any]]) -> bytes:
        """Return header and arrays, which are C-contiguous, as bytes: the same ones for the same."""
        assert header.keys() == self.fields
        stream = io.BytesIO()
        stream.write(bytes(DIGEST_NBYTES))
        with zipfile.ZipFile(stream, "w") as archive:
            with archive.open(_HEADER_FILE, "w") as file:
                file.write(json.dumps({"version": self.version, **header}).encode())
            for index, array in enumerate(arrays):
                with archive.open(_name(index), "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)
        with stream.getbuffer() as buffer:
            buffer[:DIGEST_NBYTES] = digest(self.purpose, buffer[DIGEST_NBYTES:])
        return stream.getvalue()

    def unpack(self, blob: bytes, build: Callable[[dict[str, Any], list[NDArray[Any]]], _Built]) -> _Built:
        """Return what `build` makes of header and arrays, which are new ones of numbers or bools.

        No size above that of the whole is believed.

        Raises
        ------
        FormatError
            If it is something else, or of another version (`DigestError` if it is damaged); and whatever else `build`
            raises.
        """
        if not isinstance(blob, (bytes, bytearray, memoryview)):
            raise FormatError(f"a {self.what} is stored as bytes, not as {type(blob).__name__}")
        blob = bytes(blob)
        if len(blob) <= DIGEST_NBYTES:
            raise FormatError(f"{len(blob)} bytes are no stored {self.what}")
        actual = digest(self.purpose, memoryview(blob)[DIGEST_NBYTES:])
        check_digest(blob[:DIGEST_NBYTES], actual, f"the stored {self.what}")
        try:
            with zipfile.ZipFile(io.BytesIO(blob)) as archive:
                return build(*self._read(archive, len(blob)))
        except (FormatError, StateError):
            raise
        except Exception as error:  # of an archive that was made to break readers, anything
            raise FormatError(f"no stored {self.what}: {type(error).__name__}") from error

    def _read(self, archive: zipfile.ZipFile, room: int) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        if archive.getinfo(_HEADER_FILE).file_size > room:
            raise FormatError(f"the header of the stored {self.what} is longer than the whole")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):  # bombs cannot be bounded
            raise FormatError(f"the stored {self.what} is compressed, which none is")
        header = json.loads(archive.read(_HEADER_FILE))
        if not isinstance(header, dict) or header.get("version") != self.version:
            raise FormatError(
                f"the stored {self.what} has another header than one of version {self.version}: read it with the "
                "release that wrote it"
            )
        del header["version"]
        names = archive.namelist()
        count = len(names) - 1
        if header.keys() != self.fields or set(names) != {_HEADER_FILE, *map(_name, range(count))}:
            raise FormatError(f"the stored {self.what} has other fields or files than version {self.version} has")
        arrays = []
        for name in map(_name, range(count)):
            arrays.append(self._read_array(archive, name, room))
            room -= arrays[-1].nbytes
        return header, arrays

    def _read_array(self, archive: zipfile.ZipFile, name: str, room: int) -> NDArray[Any]:
        """Return an array of at most `room` bytes; only once its size is known, memory is taken for it."""
        with archive.open(name) as file:
            version = np.lib.format.read_magic(file)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file) if version == (1, 0) else ((), True, None)
            if dtype is None or fortran or dtype.kind not in "biuf" or not dtype.isnative or min(shape, default=0) < 0:
                raise FormatError(f"array {name} of the stored {self.what} is of no kind that is written there")
            nbytes = math.prod(shape) * dtype.itemsize
            if nbytes > room:
                raise FormatError(f"the stored {self.what} names more values than it has")
            data = file.read(nbytes + 1)
        return np.array(np.frombuffer(data, dtype).reshape(shape))  # one that can be written to


def _name(index: int) -> str:
    return f"{index}.npy"
