"""An S3 server on this machine, over HTTP and HTTPS: a process of moto's, for tests and benchmarks.

moto keeps the objects, in unlinked temporary files, and speaks S3. In front of it, in the same process, requests are
held against S3's rules that moto does not check (`s3_signatures`), objects are read by range (`s3_bodies`), and faults
are made that a test has ordered (`s3_faults`). The process ends with its standard input, so with the process that
started it, however that ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from secagg.trust import Authority, Tls

REGION = "us-east-1"
#: One who may read and write, and one who may only read.
WRITER = ("AKIAWRITER0000000000", "secret-of-the-writer")
READER = ("AKIAREADER0000000000", "secret-of-the-reader")


@dataclass
class S3Server:
    """A server that runs; `serving_s3` starts it."""

    process: subprocess.Popen[str]
    tls: Tls
    ports: tuple[int, int] = (0, 0)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _buckets: int = 0

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def https(self) -> str:
        """Its certificate is of the authority `tls.ca`."""
        return f"https://127.0.0.1:{self.ports[1]}"

    def environment(self, credentials: tuple[str, str] = WRITER, *, secure: bool = False) -> dict[str, str]:
        """The variables with which fsspec and boto find it."""
        return {
            "AWS_ENDPOINT_URL": self.https if secure else self.http,
            "AWS_ACCESS_KEY_ID": credentials[0],
            "AWS_SECRET_ACCESS_KEY": credentials[1],
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_CA_BUNDLE": str(self.tls.ca),
        }

    def client(self, credentials: tuple[str, str] = WRITER, *, secure: bool = False) -> Any:
        """A client of boto's, which signs URLs as all regions take them; by itself it would in the old way."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.https if secure else self.http,
            aws_access_key_id=credentials[0],
            aws_secret_access_key=credentials[1],
            region_name=REGION,
            verify=str(self.tls.ca),
            config=Config(signature_version="s3v4", retries={"total_max_attempts": 1}),
        )

    def bucket(self, *, versioned: bool = False) -> str:
        """Make a bucket; return its name."""
        self._buckets += 1
        name = f"bucket-{self._buckets}"
        self._order("bucket", name=name, versioned=versioned)
        return name

    def fault(self, kind: str, **options: Any) -> None:
        """Order a fault; see `s3_faults.Fault`."""
        self._order("fault", kind=kind, **options)

    def old_lists(self, bucket: str, times: int = 1) -> None:
        """Let the next `times` lists be as they are now: without what is written from here on, with what is removed."""
        self._order("old_lists", bucket=bucket, times=times)

    def requests(self) -> list[dict[str, str]]:
        """Return those since `clear`: the method, ``bucket/key``, query, range and status of each."""
        return list(self._order("requests"))

    def uploads(self, bucket: str) -> list[str]:
        """Return the keys of the multipart uploads that are neither complete nor aborted."""
        return list(self._order("uploads", bucket=bucket))

    def clear(self) -> None:
        """Take back what was ordered, forget the requests."""
        self._order("clear")

    def _order(self, do: str, **options: Any) -> Any:
        with self._lock:
            self._write({"do": do, **options})
            return self._read()

    def _write(self, message: object) -> None:
        stdin: IO[str] | None = self.process.stdin
        assert stdin is not None
        stdin.write(json.dumps(message) + "\n")
        stdin.flush()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the S3 server has ended; see its log"
        return json.loads(line)


def forget_stores() -> None:
    """Let the next object of S3 that is touched be found by the variables of then."""
    import fsspec

    fsspec.get_filesystem_class("s3").clear_instance_cache()


@contextmanager
def serving_s3(folder: Path) -> Iterator[S3Server]:
    """A server while the block lasts; in `folder` are its certificates, its log and what it stores."""
    tls = Authority.create(folder / "authority").issue_server()
    environment = os.environ | {"TMPDIR": str(folder)}
    program = [sys.executable, "-W", "error", str(Path(__file__).with_name("s3_process.py"))]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
    server = S3Server(process, tls)
    with process:
        try:
            secrets = dict((WRITER, READER))
            server._write({"secrets": secrets, "readers": [READER[0]], "cert": str(tls.cert), "key": str(tls.key)})
            server.ports = tuple(server._read())
            yield server
        finally:
            process.kill()
    assert "Traceback" not in (folder / "log").read_text(), (folder / "log").read_text()[-4000:]
