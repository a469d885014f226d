"""What can be pickled comes back equal, and what is secret says what to do instead; nothing of ours unpickles."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import io
import multiprocessing
import pickle
import re
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation import federate
from signed import sign_federation

import secagg
from secagg import errors
from secagg.errors import FormatError, SecAggError, StateError
from secagg.protocol.messages import BrokenOffError, BusyError, Chunk, DownloadRequest
from secagg.site import GlobalModel
from secagg.trust.project import Party
from secagg.ui.findings import Doubt
from secagg.wire.header import Contribution
from secagg.wire.update import MAX_PICKLED_FILE_NBYTES

ROOT = Path(__file__).resolve().parents[1]
PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)

SIGNED = sign_federation(federate("flashe", encrypt={"exclude": ["c"]}, max_abs={"default": 1.0, "c": 0.5}))
STATE = {"w": np.linspace(-1, 1, 9000, dtype=np.float32), "c": np.zeros(3), "steps": np.array(4)}
UPDATES = SIGNED.encrypt([STATE] * 3)
AGGREGATE = SIGNED.add(UPDATES)


def again(value: Any, protocol: int = pickle.HIGHEST_PROTOCOL) -> Any:
    return pickle.loads(pickle.dumps(value, protocol))


def sources() -> list[Path]:
    """Every module of secagg; integrations lie in it by a link."""
    return sorted(path for room in ("secagg", "integrations") for path in (ROOT / room).rglob("*.py"))


@cache
def own_errors() -> list[type[BaseException]]:
    """What our modules define as an error or a warning; only those modules are loaded."""
    found = []
    for path in sources():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and any(IS_ERROR.search(ast.unparse(base)) for base in node.bases):
                place = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                module = importlib.import_module(place if place.startswith("secagg") else f"secagg.{place}")
                found.append(getattr(module, node.name))
    return found


IS_ERROR = re.compile(r"(Error|Exception|Warning)$")


def make(kind: type[BaseException]) -> BaseException:
    takes_none = "__init__" in vars(kind) and len(inspect.signature(kind.__init__).parameters) == 1
    return kind() if takes_none else kind("a message with a value: 7")


def raises(kind: type[BaseException]) -> None:
    raise make(kind)


def test_the_errors_are_all_there() -> None:
    found = set(own_errors())
    assert {errors.DecryptionError, errors.PrivacyWarning, errors.QuotaError, BusyError, BrokenOffError, Doubt} < found
    assert len(found) >= 30


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_errors_come_back_equal(protocol: int) -> None:
    for kind in own_errors():
        error = make(kind)
        error.add_note("said on the way")
        error.site = "site-1"  # type: ignore[attr-defined]
        for found in (again(error, protocol), copy.copy(error), copy.deepcopy(error)):
            assert type(found) is kind
            assert (found.args, str(found), vars(found)) == (error.args, str(error), vars(error))
            assert vars(found)["site"] == "site-1"


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_errors_cross_a_pool_of_processes(method: str) -> None:
    """One that does not breaks the whole pool."""
    context = multiprocessing.get_context(method)
    kinds = [kind for kind in own_errors() if kind.__module__ == "secagg.errors"]
    assert len(kinds) >= 25
    with ProcessPoolExecutor(1, context) as pool:
        for kind in kinds:
            with pytest.raises(kind) as caught:
                pool.submit(raises, kind).result(120)
            assert caught.value.args == make(kind).args


# Updates


def in_a_file(update: secagg.Update, folder: Path) -> secagg.Update:
    update.save(folder / "update.secagg")
    return secagg.Update.open(folder / "update.secagg")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_update_comes_back_equal(protocol: int, tmp_path: Path) -> None:
    SIGNED.site().encrypt_model(tmp_path / "model", STATE, round=3, base=bytes(32))
    model = secagg.Update.from_bytes((tmp_path / "model").read_bytes())
    for update in (UPDATES[0], AGGREGATE, sum_of(UPDATES), model):
        with in_a_file(update, tmp_path) as opened:
            streamed = secagg.Update.open(io.BytesIO(update.to_bytes()))
            for source in (update, opened, streamed):
                found = again(source, protocol)
                assert found == source
                assert hash(found) == hash(source)
                assert found.to_bytes() == update.to_bytes()
                assert found.header == update.header
    assert again(AGGREGATE).next_base == AGGREGATE.next_base


def sum_of(updates: list[secagg.Update]) -> secagg.Update:
    """An aggregate as the aggregator returns it: in memory, and not of one piece of bytes."""
    aggregator = SIGNED.aggregator(updates[0].round)
    for update in updates:
        aggregator.add(update)
    return aggregator.finish()


def test_what_is_equal() -> None:
    first, second, third = UPDATES
    same = secagg.Update.from_bytes(first.to_bytes())
    assert first == same
    assert len({first, same, second, third}) == 3
    assert first != second
    assert first != first.to_bytes()
    assert sum_of(UPDATES) == sum_of(UPDATES)
    # The same header over another body: not two encryptions, which differ in their nonce.
    blob = bytearray(first.to_bytes())
    blob[len(first.header.head) + 2000 : len(first.header.head) + 2001] = b"\0"
    assert secagg.Update.from_bytes(blob) == first  # digests are compared, and not yet held against frames
    blob[-1] ^= 1
    other = secagg.Update.from_bytes(blob)
    assert other != first
    assert hash(other) == hash(first)


def test_a_large_file_is_not_read_into_memory(tmp_path: Path) -> None:
    site, path = SIGNED.site(), tmp_path / "large.secagg"
    values = MAX_PICKLED_FILE_NBYTES  # of 8 bits each, and more
    site.encrypt_to(path, {"w": np.zeros(values, np.float32), "c": np.zeros(3)})
    with secagg.Update.open(path) as update, path.open("rb") as stream:
        for large in (update, secagg.Update.open(stream)):
            tracemalloc.start()
            with pytest.raises(StateError, match=r"has \d+ bytes; more than 67108864 are not pickled: send the path"):
                pickle.dumps(large)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
            tracemalloc.stop()
        in_memory = secagg.Update.from_bytes(update.to_bytes())
        assert again(in_memory) == update


def test_a_closed_update_is_not_pickled(tmp_path: Path) -> None:
    with in_a_file(UPDATES[0], tmp_path) as update:
        pass
    for use in (pickle.dumps, copy.copy, secagg.Update.digest, lambda closed: closed == UPDATES[0]):
        with pytest.raises(StateError, match="closed; open it again"):
            use(update)
    assert hash(update) == hash(UPDATES[0])


def test_a_pickle_that_was_changed_is_refused() -> None:
    blob = pickle.dumps(UPDATES[0])
    place = blob.index(b'"contributions"')
    with pytest.raises(FormatError):
        pickle.loads(blob[:place] + b"X" + blob[place + 1 :])


# Everything else

VALUES: dict[str, Any] = {
    "config": SIGNED.config,
    "header": UPDATES[0].header,
    "header of an aggregate": AGGREGATE.header,
    "layout": UPDATES[0].header.layout,
    "project": SIGNED.project,
    "party": Party("site-1", bytes(32), "0" * 64),
    "contribution": Contribution("site-1", bytes(32)),
    "receipt": secagg.Receipt.of(UPDATES[0], SIGNED.server),
    "server key": SIGNED.federation.keys.server,
    "chunk": Chunk(b"abc"),
    "request": DownloadRequest("aggregate", 3),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_value_comes_back_equal(value: Any, protocol: int) -> None:
    for found in (again(value, protocol), copy.copy(value), copy.deepcopy(value)):
        assert found == value
        assert repr(found) == repr(value)
    if isinstance(value, secagg.Project):
        assert again(value, protocol).signed == value.signed
    if isinstance(value, secagg.Header):
        assert again(value, protocol).head == value.head


@pytest.mark.parametrize("name", ["header", "layout"])
def test_what_was_computed_is_not_pickled(name: str) -> None:
    value = VALUES[name]
    fresh = secagg.Header(**vars_of(value)) if name == "header" else secagg.Layout(value.tensors)
    before = len(pickle.dumps(fresh))
    _ = fresh.head if isinstance(fresh, secagg.Header) else fresh.fingerprint
    assert len(pickle.dumps(fresh)) == before


def vars_of(header: secagg.Header) -> dict[str, Any]:
    return {name: getattr(header, name) for name in secagg.Header.__dataclass_fields__}


def client() -> secagg.Client:
    return SIGNED.site()


SECRETS: dict[str, tuple[Callable[[], Any], str]] = {
    "client key": (lambda: SIGNED.federation.keys.client, r"save\(\) and load_key\(\)"),
    "both keys": (lambda: SIGNED.federation.keys, r"save\(\) and load_key\(\)"),
    "words": (lambda: SIGNED.federation.keys.client.secret_material(), r"save\(\) and load_key\(\)"),
    "identity": (lambda: SIGNED.identities["site-1"], r"save\(\) and Identity\.load\(\)"),
    "client": (client, r"make it where it is used, by Client\.load\(kit\)"),
    "global model": (lambda: GlobalModel(client(), STATE), r"use to_bytes\(\) and from_bytes\(\)"),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("secret", "remedy"), SECRETS.values(), ids=SECRETS)
def test_what_is_secret_is_not_pickled(secret: Callable[[], Any], remedy: str, protocol: int) -> None:
    value = secret()
    for use in (lambda: pickle.dumps(value, protocol), lambda: pickle.dumps({"held": [value]}, protocol)):
        with pytest.raises(TypeError, match=remedy):
            use()


# What comes over a network is never unpickled.


def unsafe_calls(source: str) -> list[str]:
    """Calls that would run what a pickle says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [name for name in names if name.partition(".")[0] in UNSAFE]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            words = {word.arg: ast.unparse(word.value) for word in node.keywords}
            call = ast.unparse(node.func)
            safe = {"torch.load": ("weights_only", "True"), "np.load": ("allow_pickle", "False")}
            if call in safe and words.get(safe[call][0]) != safe[call][1]:
                found.append(call)
            if words.get("allow_pickle") == "True" or words.get("weights_only") == "False":
                found.append(call)
    return found


UNSAFE = ("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")


def test_nothing_of_ours_unpickles() -> None:
    paths = sources()
    assert len(paths) > 100
    assert [(path.name, call) for path in paths for call in unsafe_calls(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import dill",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "np.load(file)",
        "np.lib.format.read_array(file, allow_pickle=True)",
    ],
)
def test_what_would_unpickle_is_found(source: str) -> None:
    assert unsafe_calls(source)


def test_secagg_errors_are_typed() -> None:
    """`except SecAggError` is enough of all but what the two sides of a call tell each other."""
    outside = {kind for kind in own_errors() if not issubclass(kind, (SecAggError, Warning))}
    assert outside == {BusyError, BrokenOffError, Doubt}
