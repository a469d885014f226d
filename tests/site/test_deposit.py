"""Updates that go by the server's bucket: whatever server and bucket say, they go nowhere else, and no URL is told."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import secagg
from secagg.errors import FormatError, TransportError
from secagg.protocol import BusyError, DepositReply, PartTarget
from secagg.site.deposit import Depositor
from secagg.trust import Authority, Tls

CONFIG = {
    "he": {"lib": "flashe", "config": {"scheme": "FLASHE", "value_bits": 24}},
    "aggregation": {"min_clients": 2, "max_clients": 4, "max_abs": 1.0},
}
#: In the query of each URL.
SECRET = "X-Amz-Signature=0123456789abcdef0123456789abcdef"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

Answer = Callable[[ssl.SSLSocket], None]


@dataclass
class Store:
    """An HTTPS server that keeps what is put, and answers as it is told: the last answer again and again."""

    tls: Tls
    answers: list[bytes | Answer] = field(default_factory=lambda: [OK])
    puts: list[tuple[str, bytes]] = field(default_factory=list)
    connections: int = 0

    def __post_init__(self) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(self.tls.cert, self.tls.key)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.place = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def url(self, number: int) -> str:
        return f"https://{self.place}/bucket/key?partNumber={number}&{SECRET}"

    def _serve(self) -> None:
        while True:
            try:
                raw, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._answer, args=(raw,), daemon=True).start()

    def _answer(self, raw: socket.socket) -> None:
        try:
            with self.context.wrap_socket(raw, server_side=True) as connection, connection.makefile("rb") as file:
                while line := file.readline():
                    headers = dict(header.decode().rstrip().split(": ", 1) for header in iter(file.readline, b"\r\n"))
                    method, target, _ = line.decode().split()
                    body = file.read(int(headers["Content-Length"]))
                    self.puts.append((target, body))
                    assert method == "PUT"
                    answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                    if callable(answer):
                        answer(connection)
                        return
                    connection.sendall(answer)
        except (OSError, ValueError):  # the site has gone
            pass


@dataclass
class Asking:
    """A server whose answers to the head are these: the last one again and again."""

    replies: list[DepositReply | Exception]
    asked: int = 0

    def deposit(self, head: bytes, seconds: float) -> DepositReply:
        self.asked += 1
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, Exception):
            raise reply
        return reply


DONE = DepositReply(done=True, receipt=b"receipt")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def update() -> secagg.Update:
    config = secagg.Config.from_dict(CONFIG)
    client = secagg.Client(config, secagg.generate_keys(config).client, name="site-1")
    return client.encrypt({"w": np.linspace(-1, 1, 600_000, dtype=np.float32)})


@pytest.fixture
def store(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    store = Store(authority.issue_server(folder=tmp_path / "store"))
    monkeypatch.setenv("SSL_CERT_FILE", str(store.tls.ca))
    yield store
    store.close()


def targets(store: Store, update: secagg.Update, size: int) -> tuple[PartTarget, ...]:
    return tuple(
        PartTarget(number, offset, min(size, update.nbytes - offset), store.url(number))
        for number, offset in enumerate(range(0, update.nbytes, size), 1)
    )


def given(store: Store, update: secagg.Update, *replies: Any, seconds: float = 20.0, hosts: Sequence[str] = ()) -> Any:
    link = Asking([reply if not isinstance(reply, tuple) else DepositReply(parts=reply) for reply in replies])
    return Depositor(link, update, tuple(hosts) or (store.place,))(seconds)  # type: ignore[arg-type]


@contextmanager
def refused(kind: type[Exception], caplog: pytest.LogCaptureFixture, match: str | None = None) -> Iterator[None]:
    """The block raises this, and no URL is in it, in what it is chained to, or in a log."""
    caplog.set_level(logging.DEBUG)
    with pytest.raises(kind, match=match) as caught:
        yield
    error: BaseException | None = caught.value
    told = caplog.text + "".join(traceback.format_exception(caught.value))
    while error is not None:
        told += repr(error) + str(vars(error))
        error = error.__cause__ or error.__context__
    assert "Signature" not in told
    assert "partNumber" not in told


@pytest.mark.parametrize("size", [999_999, 1 << 20, 10_000_000])
def test_what_is_put_is_the_update(store: Store, update: secagg.Update, size: int) -> None:
    parts, blob, seen = targets(store, update, size), update.to_bytes(), list[int]()
    link = Asking([DepositReply(parts=parts[:1]), DepositReply(parts=parts[1:] or parts), DONE])
    depositor = Depositor(link, update, (store.place,), lambda done, total: seen.append(done))  # type: ignore[arg-type]
    assert depositor(20.0) == (False, b"receipt")
    assert [body for _, body in store.puts] == [
        blob[part.offset : part.offset + part.nbytes] for part in (*parts[:1], *(parts[1:] or parts))
    ]
    assert store.puts[0][0] == f"/bucket/key?partNumber=1&{SECRET}"
    assert seen[-1] == update.nbytes
    assert store.connections == 1


def test_what_is_there_is_not_put(store: Store, update: secagg.Update) -> None:
    assert given(store, update, DepositReply(already_added=True, receipt=b"r")) == (True, b"r")
    assert given(store, update, targets(store, update, 1 << 20)[2:], DONE) == (False, b"receipt")
    assert len(store.puts) == len(targets(store, update, 1 << 20)) - 2


URLS = {
    "clear": "http://{place}/k?{secret}",
    "another host": "https://evil.example/k?{secret}",
    "another port": "https://127.0.0.1:1/k?{secret}",
    "no port": "https://127.0.0.1/k?{secret}",
    "a user": "https://{place}@evil.example/k?{secret}",
    "a user of the host": "https://me@{place}/k?{secret}",
    "a user and a password": "https://me:{secret}@{place}/k",
    "a fragment": "https://{place}/k?{secret}#f",
    "a backslash": "https://{place}\\@evil.example/k?{secret}",
    "a line": "https://{place}/k?{secret}\r\nX: y",
    "a space": "https://{place}/k {secret}",
    "letters": "https://{place}/k?{secret}ü",
    "capitals": "HTTPS://{place}/k?{secret}",
    "another scheme": "file:///etc/passwd?{secret}",
    "brackets": "https://[{place}/k?{secret}",
    "no host": "https:///k?{secret}",
    "length": "https://{place}/k?{secret}" + "x" * 9000,
    "nothing": "",
}


@pytest.mark.parametrize("which", URLS)
def test_urls_that_are_not_for_a_site(
    store: Store, update: secagg.Update, caplog: pytest.LogCaptureFixture, which: str
) -> None:
    url = URLS[which].format(place=store.place, secret=SECRET)
    first, *others = targets(store, update, 1 << 20)
    for parts in ((replace(first, url=url), *others), (first, replace(others[0], url=url))):
        with refused(FormatError, caplog, "URL"):
            given(store, update, parts)
    assert store.connections == 0


PARTS: dict[str, Callable[[tuple[PartTarget, ...], int], Sequence[PartTarget]]] = {
    "none": lambda parts, total: (),
    "overlapping": lambda parts, total: (parts[0], replace(parts[1], offset=parts[1].offset - 1)),
    "apart": lambda parts, total: (parts[0], replace(parts[1], offset=parts[1].offset + 1)),
    "twice": lambda parts, total: (parts[0], parts[0]),
    "backwards": lambda parts, total: (parts[1], parts[0]),
    "number 0": lambda parts, total: (replace(parts[0], number=0),),
    "empty": lambda parts, total: (replace(parts[0], nbytes=0),),
    "huge": lambda parts, total: (replace(parts[0], nbytes=1 << 60),),
    "too long": lambda parts, total: (*parts[:-1], replace(parts[-1], nbytes=parts[-1].nbytes + 1)),
    "too short": lambda parts, total: (parts[0], replace(parts[1], nbytes=1)),
    "behind the end": lambda parts, total: (PartTarget(2, total, 1, parts[0].url),),
    "of another size": lambda parts, total: (replace(parts[0], nbytes=total + 1),),
    "one byte each": lambda parts, total: (replace(parts[0], nbytes=1),),
    "a huge number": lambda parts, total: (replace(parts[0], number=1 << 40),),
}


@pytest.mark.parametrize("which", PARTS)
def test_parts_that_are_none_of_the_update(
    store: Store, update: secagg.Update, caplog: pytest.LogCaptureFixture, which: str
) -> None:
    parts = PARTS[which](targets(store, update, 1 << 20), update.nbytes)
    with refused(FormatError, caplog, "part"):
        given(store, update, tuple(parts))
    assert store.connections == 0


def test_parts_keep_their_size(store: Store, update: secagg.Update, caplog: pytest.LogCaptureFixture) -> None:
    with refused(FormatError, caplog, "none of an update"):
        given(store, update, targets(store, update, 1 << 20)[:1], targets(store, update, 1 << 19)[2:])


@pytest.mark.parametrize("number", [-1, 1.5, True])
def test_numbers_that_are_none(number: Any) -> None:
    with pytest.raises(FormatError, match="names nbytes"):
        PartTarget(1, 0, number, "https://x/")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(
    store: Store,
    authority: Authority,
    tmp_path: Path,
    update: secagg.Update,
    caplog: pytest.LogCaptureFixture,
    status: int,
) -> None:
    other = Store(authority.issue_server(folder=tmp_path / "other"))
    store.answers = [f"HTTP/1.1 {status} x\r\nLocation: {other.url(1)}\r\nContent-Length: 0\r\n\r\n".encode()]
    with refused(TransportError, caplog, "elsewhere"):
        given(store, update, targets(store, update, 1 << 20), hosts=(store.place, other.place))
    other.close()
    assert (len(store.puts), other.connections) == (1, 0)


def answer(status: int, body: bytes = b"") -> bytes:
    return f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize("status", [400, 401, 403, 411, 413, 416])
def test_a_store_that_refuses(
    store: Store, update: secagg.Update, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    store.answers = [answer(status, f"<Error>{store.url(1)}</Error>".encode())]
    with refused(TransportError, caplog, f"refuses a part of the update .{status}."):
        given(store, update, targets(store, update, 1 << 20))


@pytest.mark.parametrize("status", [404, 408, 429, 500, 503])
def test_a_store_that_is_busy(
    store: Store, update: secagg.Update, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    store.answers = [answer(status)]
    with refused(BusyError, caplog, f"answers {status}"):
        given(store, update, targets(store, update, 1 << 20))


@pytest.mark.parametrize("status", [400, 403])
def test_a_url_that_has_expired_is_asked_for_again(store: Store, update: secagg.Update, status: int) -> None:
    """By itself, which S3 answers with 403, or with the temporary credentials that have signed it: 400."""
    parts = targets(store, update, 1 << 20)
    store.answers = [OK, answer(status), OK]
    assert given(store, update, parts, parts[1:], DONE) == (False, b"receipt")
    assert len(store.puts) == len(parts) + 1


def test_a_server_that_asks_without_an_end(
    store: Store, update: secagg.Update, caplog: pytest.LogCaptureFixture
) -> None:
    with refused(TransportError, caplog, "part 1 again, which was put 3 times"):
        given(store, update, targets(store, update, 1 << 20)[:1])
    assert len(store.puts) == 3


def endless(connection: ssl.SSLSocket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n")
    while True:
        connection.sendall(bytes(1 << 16))


def endless_continues(connection: ssl.SSLSocket) -> None:
    while True:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


def silent(connection: ssl.SSLSocket) -> None:
    connection.recv(1)


ANSWERS: dict[str, bytes | Answer] = {
    "no HTTP": f"{SECRET}\r\n\r\n".encode(),
    "a header that is none": f"HTTP/1.1 200 OK\r\n{SECRET}\r\nbad header\r\n\r\n".encode(),
    "a long line": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * 1000 + b"\r\n",
    "nothing": lambda connection: None,
    "silence": silent,
    "continues": endless_continues,
}


@pytest.mark.parametrize("which", ANSWERS)
def test_answers_that_are_none(
    store: Store, update: secagg.Update, caplog: pytest.LogCaptureFixture, which: str
) -> None:
    store.answers = [ANSWERS[which]]
    kinds = (BusyError, TransportError)
    with refused(Exception, caplog) if which != "a header that is none" else pytest.raises(kinds):
        given(store, update, targets(store, update, 1 << 20)[:1], seconds=1.0)
    assert "Signature" not in caplog.text


def dripping(connection: ssl.SSLSocket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    for _ in range(80):
        connection.sendall(b"x")
        time.sleep(0.1)


@pytest.mark.parametrize("late", [0.0, 1.2], ids=["at once", "when its name was found"])
def test_an_answer_that_drips_ends_with_the_time(
    store: Store, update: secagg.Update, monkeypatch: pytest.MonkeyPatch, late: float
) -> None:
    connect = socket.create_connection

    def slow(*arguments: Any, **options: Any) -> socket.socket:
        time.sleep(late)
        return connect(*arguments, **options)

    monkeypatch.setattr(socket, "create_connection", slow)
    store.answers, began = [dripping], time.monotonic()
    with pytest.raises(BusyError):
        given(store, update, targets(store, update, 1 << 20), seconds=1.0)
    assert time.monotonic() - began < 4.0


def test_an_answer_is_not_read_to_an_end_that_never_comes(store: Store, update: secagg.Update) -> None:
    store.answers = [endless]
    parts = targets(store, update, 1 << 20)
    assert given(store, update, parts, DONE) == (False, b"receipt")
    assert store.connections == len(parts)


def test_a_certificate_of_somebody_else(
    store: Store,
    update: secagg.Update,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(Authority.create(tmp_path / "other").issue_server().ca))
    with refused(TransportError, caplog, "SSL_CERT_FILE"):
        given(store, update, targets(store, update, 1 << 20))
    assert store.puts == []


def test_a_store_that_is_away(store: Store, update: secagg.Update, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        store.place = f"127.0.0.1:{gone.getsockname()[1]}"
    with refused(BusyError, caplog, "cannot be reached"):
        given(store, update, targets(store, update, 1 << 20))


def test_errors_of_the_site_are_its_own(store: Store, update: secagg.Update, tmp_path: Path) -> None:
    def progress(done: int, total: int) -> None:
        raise OSError("the terminal has gone")

    link = Asking([DepositReply(parts=targets(store, update, 1 << 20))])
    with pytest.raises(OSError, match="the terminal has gone"):
        Depositor(link, update, (store.place,), progress)(20.0)  # type: ignore[arg-type]
    path = tmp_path / "update"
    update.save(path)
    with secagg.Update.open(path) as opened:
        path.write_bytes(b"")
        with pytest.raises(FormatError, match="shorter"):
            given(store, opened, targets(store, opened, 1 << 20))


@pytest.mark.parametrize(
    "proxy", ["http://h:99999", "http://h:x", "http://[h:1", "http://a b:80", "socks5://h:1", "http://.h:1"]
)
def test_proxies_that_are_none(update: secagg.Update, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", proxy)
    parts = (PartTarget(1, 0, update.nbytes, f"https://store.example/k?{SECRET}"),)
    link = Asking([DepositReply(parts=parts)])
    with pytest.raises((TransportError, BusyError)) as caught:
        Depositor(link, update, ("store.example",))(5.0)  # type: ignore[arg-type]
    assert "Signature" not in "".join(traceback.format_exception(caught.value))


def test_a_proxy_passes_on_what_it_cannot_read(
    authority: Authority, update: secagg.Update, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(authority.issue_server(("store.example",), folder=tmp_path / "named"))
    monkeypatch.setenv("SSL_CERT_FILE", str(store.tls.ca))
    proxy, asked = socket.create_server(("127.0.0.1", 0)), list[bytes]()

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
        except OSError:
            pass

    def serve() -> None:
        client, _ = proxy.accept()
        request = b""
        while b"\r\n\r\n" not in request:
            request += client.recv(1 << 16)
        asked.append(request)
        host, _, port = store.place.partition(":")
        upstream = socket.create_connection((host, int(port)))
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        threading.Thread(target=pump, args=(upstream, client), daemon=True).start()
        pump(client, upstream)
        upstream.close()
        client.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", f"http://me:p%40ss@127.0.0.1:{proxy.getsockname()[1]}")
    parts = tuple(
        replace(part, url=part.url.replace(store.place, "store.example")) for part in targets(store, update, 1 << 20)
    )
    assert given(store, update, parts, DONE, hosts=("store.example",)) == (False, b"receipt")
    thread.join(20)
    proxy.close()
    store.close()
    assert asked[0].startswith(b"CONNECT store.example:443 HTTP/1.")
    assert b"Basic bWU6cEBzcw==" in asked[0]
    assert SECRET.encode() not in asked[0]
    assert b"".join(body for _, body in store.puts) == update.to_bytes()
