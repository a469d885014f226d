"""The messages of secagg.proto."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from . import secagg_pb2 as pb

#: Of a gRPC message: the largest head, 4 MiB of header, fits.
MAX_MESSAGE_NBYTES = 5 << 20


def messages(chunks: Iterable[bytes | memoryview], frame: int) -> Iterator[pb.Chunk]:
    """Yield the messages of a stream: its head, which says that it goes on from `frame`, and the other chunks."""
    for index, chunk in enumerate(chunks):
        yield pb.Chunk(data=bytes(chunk), frame=0 if index else frame)
