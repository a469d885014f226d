"""The process of an S3 server: moto behind S3's own rules and the faults that tests order; see `s3_server`."""

from __future__ import annotations

import json
import os
import signal
import ssl
import sys
import threading
from typing import Any, cast

from moto.moto_server.werkzeug_app import MotoRequestHandler, create_backend_app
from moto.s3.models import FakeBucket, FakeKey
from s3_bodies import Bodies, backend, bucket_of, keep_in_files
from s3_faults import Fault, Faults
from s3_signatures import REGION, App, Environ, Signatures, StartResponse
from werkzeug.serving import BaseWSGIServer, make_server

#: Of a bucket of which lists are old.
_OLD = "-as-it-was"


class Handler(MotoRequestHandler):
    def log_request(self, *_: object) -> None:
        pass


class Lists:
    """While a bucket's lists are old, they are those of a twin that has the objects of then."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._left: dict[str, int] = {}
        self._lock = threading.Lock()

    def keep(self, bucket: str, times: int) -> None:
        then = bucket_of(bucket)
        twin = FakeBucket(bucket + _OLD, then.account_id, then.region_name)
        for name, key in then.keys.items():
            if isinstance(key, FakeKey):
                key.etag  # noqa: B018 - made when asked for, of what may be gone by then
                dict.__setitem__(twin.keys, name, [key])
        with self._lock:
            backend().buckets[twin.name] = twin
            self._left[bucket] = times

    def __call__(self, environ: Environ, start_response: StartResponse) -> Any:
        bucket = environ["PATH_INFO"].strip("/")
        query = {pair.partition("=")[0] for pair in environ["QUERY_STRING"].split("&")}
        if environ["REQUEST_METHOD"] != "GET" or query & {"uploads", "versioning", "location", "versions"}:
            return self._app(environ, start_response)
        with self._lock:
            old = self._left.get(bucket, 0) > 0
            if old:
                self._left[bucket] -= 1
        if not old:
            return self._app(environ, start_response)
        path = f"/{bucket}{_OLD}"
        old_environ = environ | {"PATH_INFO": path, "RAW_URI": f"{path}?{environ['QUERY_STRING']}", "REQUEST_URI": path}
        return self._app(old_environ, start_response)


class Control:
    """What the process that started this one may order, a line of JSON each on standard input."""

    def __init__(self, faults: Faults, lists: Lists) -> None:
        self._faults, self._lists = faults, lists

    def bucket(self, name: str, versioned: bool) -> None:
        bucket = backend().create_bucket(name, REGION)
        if versioned:
            bucket.versioning_status = "Enabled"

    def fault(self, **order: Any) -> None:
        self._faults.orders.append(Fault(**order))

    def clear(self) -> None:
        self._faults.orders.clear()
        self._faults.requests.clear()

    def requests(self) -> list[dict[str, str]]:
        return list(self._faults.requests)

    def old_lists(self, bucket: str, times: int) -> None:
        self._lists.keep(bucket, times)

    def uploads(self, bucket: str) -> list[str]:
        return sorted(upload.key_name for upload in bucket_of(bucket).multiparts.values())


def overwrite(bucket: str, key: str) -> None:
    """Replace an object by one as long: every byte another."""
    content = cast(FakeKey, backend().get_object(bucket, key)).value
    backend().put_object(bucket, key, bytes(byte ^ 0xFF for byte in content))


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started it
    settings = json.loads(sys.stdin.readline())
    keep_in_files()
    lists = Lists(cast(App, create_backend_app("s3")))
    faults = Faults(Signatures(Bodies(lists), settings["secrets"], frozenset(settings["readers"])), overwrite)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(settings["cert"], settings["key"])
    servers: list[BaseWSGIServer] = [
        make_server("127.0.0.1", 0, cast(Any, faults), threaded=True, request_handler=Handler, ssl_context=tls)
        for tls in (None, context)
    ]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps([server.port for server in servers]), flush=True)
    control = Control(faults, lists)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(getattr(control, order.pop("do"))(**order)), flush=True)
    os._exit(0)  # at the end of its input: who started it is gone, in whatever way


if __name__ == "__main__":
    main()
