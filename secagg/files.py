"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkstemp
from typing import BinaryIO


@contextmanager
def replace_file(path: str | os.PathLike[str], mode: int = 0o644) -> Iterator[BinaryIO]:
    """Open a new file beside `path` that takes its place when the block ends without an error.

    Parameters
    ----------
    path : path
        File to make or replace.
    mode : int
        Permissions. The file has no others at any moment; secrets use 0o600.
    """
    target = Path(path)
    handle, temporary = mkstemp(prefix=f".{target.name}.", dir=target.parent)  # made with 0o600
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(handle)
            os.fchmod(handle, mode)
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
