"""Mutations of scripts of calls: other calls, in another order, by others, and of other bytes whose digests fit."""

from __future__ import annotations

import random

from fuzz_handlers import (
    ASK,
    CALLERS,
    CHUNK,
    DOWNLOAD,
    FETCH,
    JOIN,
    MAX_PAYLOAD,
    MEASURED,
    OPERATIONS,
    RESTART,
    RESUME,
    SEND,
    STATUS,
    TEMPLATES,
    UPLOAD,
    WAIT,
    Record,
    chunks_of,
    measures,
    read_script,
)
from fuzz_mutator import Mutate, Mutator

from secagg.integrations.grpc import secagg_pb2 as pb


class ScriptMutator:
    """Mutates inputs of `fuzz_handlers.Script`; `mutate` is libFuzzer's own way with bytes."""

    def __init__(self, mutate: Mutate) -> None:
        self._mutate = mutate
        self._containers = Mutator(mutate)
        self._templates = TEMPLATES[False]

    def __call__(self, data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        records, self._templates = read_script(data), TEMPLATES[measures(data)]
        for _ in range(rng.choice([1, 1, 2, 3])):
            change = rng.choice([self._insert, self._insert, self._order, self._caller, self._bytes, self._forge])
            change(records, rng)
        if records and measures(data):  # it stays in its federation
            first = records[0].operation % OPERATIONS
            records[0] = Record(MEASURED + first, records[0].caller, records[0].payload)
        mutant = b"".join(record.to_bytes() for record in records)
        return mutant if 0 < len(mutant) <= max_size else self._mutate(data, max_size)

    def _insert(self, records: list[Record], rng: random.Random) -> None:
        records.insert(rng.randint(0, len(records)), self._call(rng))

    def _call(self, rng: random.Random) -> Record:
        """A call that makes sense, or nearly."""
        which = rng.randrange(len(self._templates))
        caller = which % 4 if rng.random() < 0.8 else rng.randrange(len(CALLERS))  # every fourth is a model of site-2
        caller = 1 if caller == 3 and rng.random() < 0.8 else caller
        operation = rng.choice([SEND, SEND, SEND, ASK, FETCH, JOIN, JOIN, WAIT, RESTART, STATUS, DOWNLOAD, RESUME])
        if operation in (SEND, FETCH):
            few = [rng.choice([0, 0, 0, 1, 2, 3]) for _ in range(3)]
            return Record(operation, caller, bytes([which, *few]))
        if operation == ASK:
            return Record(operation, caller, bytes([which]))
        if operation == JOIN and rng.random() < 0.3:
            site = rng.choice(["", "..", "site-9", "server", "x" * 64, "x" * 65, "a/b", "\0", "é", "site-1"])
            return Record(operation, caller, pb.JoinRequest(site=site).SerializeToString())
        if operation == DOWNLOAD:
            number = rng.choice([0, 1, 2, 2**32, 2**64 - 1])
            kind = rng.choice(["", "model", "aggregate", "scales", "é" * 100])
            request = pb.DownloadRequest(round=number, nonce=rng.randbytes(rng.choice([0, 1, 32, 1000])), kind=kind)
            return Record(operation, caller, request.SerializeToString())
        if operation == RESUME:
            head = chunks_of(self._templates[which])[0]
            return Record(
                operation, caller, pb.Chunk(data=head, frame=rng.choice([0, 1, 2**64 - 1])).SerializeToString()
            )
        return Record(operation, caller, bytes(operation == STATUS and rng.random() < 0.3))  # of no message

    def _order(self, records: list[Record], rng: random.Random) -> None:
        if not records:
            return
        at, other = rng.randrange(len(records)), rng.randrange(len(records))
        change = rng.randrange(3)
        if change == 0:
            del records[at]
        elif change == 1:
            records.insert(other, records[at])
        else:
            records[at], records[other] = records[other], records[at]

    def _caller(self, records: list[Record], rng: random.Random) -> None:
        if records:
            at = rng.randrange(len(records))
            records[at] = Record(records[at].operation, rng.randrange(len(CALLERS)), records[at].payload)

    def _bytes(self, records: list[Record], rng: random.Random) -> None:
        if records:
            at = rng.randrange(len(records))
            payload = self._mutate(records[at].payload, len(records[at].payload) + 16)
            records[at] = Record(records[at].operation, records[at].caller, payload[:MAX_PAYLOAD])

    def _forge(self, records: list[Record], rng: random.Random) -> None:
        """Replace an upload of a template by one whose container is changed, and its digests and signature fit."""
        places = [place for place, record in enumerate(records) if record.operation in (SEND, ASK) and record.payload]
        if not places:
            records.append(self._call(rng))
            return
        at = rng.choice(places)
        old = records[at]
        chunks = chunks_of(self._templates[old.payload[0] % len(self._templates)])
        lengths = [len(chunk) for chunk in chunks]
        try:
            container = self._containers.change(b"".join(chunks), rng)
            chunks = chunks_of(container)
        except Exception:  # noqa: BLE001 - no container any more: it is cut as the old one was
            whole, chunks = b"".join(chunks), []
            for length in lengths:
                chunks.append(whole[:length])
                whole = whole[length:]
        if any(len(chunk) > MAX_PAYLOAD - 16 for chunk in chunks):
            return
        if old.operation == ASK:
            records[at] = Record(RESUME, old.caller, pb.Chunk(data=chunks[0]).SerializeToString())
            return
        messages = [pb.Chunk(data=chunk).SerializeToString() for chunk in chunks]
        new = [Record(UPLOAD, old.caller, messages[0]), *(Record(CHUNK, 0, message) for message in messages[1:])]
        records[at : at + 1] = new
