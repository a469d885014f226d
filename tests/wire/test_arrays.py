"""Arrays with a header: no size that they claim is believed, and one kind is not read as another."""

from __future__ import annotations

import json
import tracemalloc
import zipfile
from io import BytesIO
from typing import Any

import numpy as np
import pytest

from secagg.errors import DigestError, FormatError
from secagg.wire.arrays import ArrayFormat
from secagg.wire.container import digest

FORMAT = ArrayFormat("thing", b"a thing", 1, frozenset(["name"]))
ARRAYS = [np.arange(6, dtype=np.int32).reshape(2, 3), np.array(1.5), np.zeros((0, 4), bool)]


def unpack(blob: bytes) -> tuple[dict[str, Any], list[Any]]:
    return FORMAT.unpack(blob, lambda header, arrays: (header, arrays))


def test_what_is_packed_comes_back() -> None:
    header, arrays = unpack(FORMAT.pack({"name": "x"}, ARRAYS))
    assert header == {"name": "x"}
    for found, array in zip(arrays, ARRAYS, strict=True):
        assert (found.dtype, found.shape, found.flags.writeable) == (array.dtype, array.shape, True)
        np.testing.assert_array_equal(found, array)
    assert FORMAT.pack({"name": "x"}, ARRAYS) == FORMAT.pack({"name": "x"}, arrays)


def test_one_kind_is_not_another() -> None:
    other = ArrayFormat("other", b"another", 1, frozenset(["name"]))
    with pytest.raises(DigestError, match="the stored thing is damaged"):
        unpack(other.pack({"name": "x"}, ARRAYS))


@pytest.mark.parametrize("claim", ["one array", "many arrays"])
def test_no_memory_for_what_is_only_claimed(claim: str) -> None:
    """One array that says it has 256 MiB; a hundred names for the same MiB."""
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("header.json", json.dumps({"version": 1, "name": "x"}))
        npy = BytesIO()
        np.lib.format.write_array(npy, np.zeros(1 << 20, np.uint8))
        data = npy.getvalue()
        if claim == "one array":
            data = data.replace(b"(1048576,), }  ", b"(268435456,), }")
        archive.writestr("0.npy", data)
        if claim == "many arrays":
            first = archive.getinfo("0.npy")
            for number in range(1, 100):
                entry = zipfile.ZipInfo(f"{number}.npy")
                entry.header_offset, entry.CRC = first.header_offset, first.CRC
                entry.file_size, entry.compress_size = first.file_size, first.compress_size
                entry.orig_filename = "0.npy"
                archive.filelist.append(entry)
                archive.NameToInfo[entry.filename] = entry
    body = stream.getvalue()
    blob = digest(b"a thing", body) + body
    tracemalloc.start()
    with pytest.raises(FormatError):
        unpack(blob)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * len(blob)
