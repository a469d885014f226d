"""Objects of stores that fsspec reaches; of S3 by its own means: versions, ``If-Match``, copies within the store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from typing import Any

from ..errors import BackendUnavailableError, FormatError, SecAggError, StorageError, TransportError
from .files import Writable
from .multipart import MultipartUpload, writing
from .pinned import WINDOW_NBYTES, Pinned, copy_into, shown

#: Where an upload is there when it is committed. Elsewhere it is as soon as it is opened: it has another name first.
_COMMITTING = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az")
#: A part of a multipart upload of S3 that is not the last one has 5 MiB at least, and there are so many at most.
_PART_NBYTES, _MAX_PARTS = 5 << 20, 10_000
#: The most that S3 copies in a call.
_MAX_COPY_NBYTES = 5 << 30
#: Copies within the store at a time; they carry no bytes.
COPIES = 16
#: Of the client that reads, and keeps connections: what is read has digests, and a call without checks of its own takes
#: less of a processor. And a lock for who makes it.
_READING = {
    "max_pool_connections": 64,
    "parameter_validation": False,
    "response_checksum_validation": "when_required",
    "request_checksum_calculation": "when_required",
}
_MAKING = threading.Lock()
#: How long who gives up waits for a window on its way, of which a part may be left if the process ends before.
_STOP_SECONDS = 5.0
#: How often a body that breaks off is read again, beyond what fsspec tries.
_TRIES = 4


class RemoteStore:
    """Objects of one scheme; see `secagg.storage.objects`.

    Parameters
    ----------
    scheme : str
        As ``gs``; fsspec names the package that it needs.

    Raises
    ------
    BackendUnavailableError
        If fsspec, or what it needs for the scheme, is not installed.
    FormatError
        If fsspec knows no such scheme.
    """

    def __init__(self, scheme: str) -> None:
        extra = "s3fs" if scheme in ("s3", "s3a") else "fsspec"
        try:
            import fsspec

            self._scheme = scheme
            self._fs: Any = fsspec.filesystem(scheme, use_listings_cache=False)
        except ImportError as error:
            raise BackendUnavailableError(
                f"objects at {scheme}:// need more: pip install 'secagg[{extra}]' ({error})"
            ) from error
        except ValueError as error:
            raise FormatError(f"objects cannot be read from {scheme}://: {error}") from error
        except Exception as error:  # noqa: BLE001  of what is not found by its scheme alone: a host, an archive
            raise FormatError(
                f"objects cannot be read from {scheme}://: fsspec finds it by more than its scheme "
                f"({type(error).__name__})"
            ) from None

    def pin(self, url: str) -> Pinned:
        """See `secagg.storage.objects.pin`."""
        with _reading(url):
            info = self._fs.info(url)
            if info["type"] != "file" or info["size"] is None:
                raise FormatError(f"{shown(url)} is no object of a known size")
            return Pinned(url, int(info["size"]), etag=str(self._fs.ukey(url)))

    def read(self, pinned: Pinned, offset: int, nbytes: int) -> bytes:
        """See `secagg.storage.objects.read`."""
        with _reading(pinned.url):
            if str(self._fs.ukey(pinned.url)) != pinned.etag:
                raise _changed(pinned)
            return _whole(bytes(self._fs.cat_file(pinned.url, start=offset, end=offset + nbytes)), pinned, nbytes)

    @contextmanager
    def write(self, url: str) -> Iterator[Writable]:
        """See `secagg.storage.objects.write`."""
        commits = self._scheme in _COMMITTING
        place = url if commits else f"{url}.part"
        with _writing(url):
            file = self._fs.open(place, "wb", block_size=WINDOW_NBYTES, **({"autocommit": False} if commits else {}))
        dropping = threading.Lock()

        def drop() -> None:
            with dropping, suppress(Exception):
                file.discard() if commits else self._fs.rm_file(place)
            with suppress(AttributeError):  # of what has no buffer
                file.closed = True  # else Python's collector would flush, and so upload, what is left in it

        stream = _Behind(file, url, drop)
        try:
            yield stream
            stream.flush()
            with _writing(url):
                file.close()
                file.commit() if commits else self._fs.mv(place, url)
        except BaseException:
            stream.give_up()
            raise

    def list(self, pattern: str) -> list[str]:
        """See `secagg.storage.objects.list_objects`."""
        with _reading(pattern):
            return sorted(str(self._fs.unstrip_protocol(path)) for path in self._fs.glob(pattern))

    def remove(self, url: str) -> None:
        """See `secagg.storage.objects.remove`."""
        with _writing(url), suppress(FileNotFoundError):
            self._fs.rm_file(url)

    def concatenate(self, parts: Sequence[Pinned], url: str) -> None:
        """See `secagg.storage.objects.concatenate`."""
        with self.write(url) as target:
            copy_into(self, parts, target)


class S3Store(RemoteStore):
    """Objects of S3, and of what speaks as it does."""

    def pin(self, url: str) -> Pinned:
        """See `secagg.storage.objects.pin`."""
        with _reading(url):
            head = self._ask("head_object", self._place(url))
        version = head.get("VersionId") or ""
        return Pinned(url, int(head["ContentLength"]), "" if version == "null" else version, head.get("ETag", ""))

    def read(self, pinned: Pinned, offset: int, nbytes: int) -> bytes:
        """See `secagg.storage.objects.read`."""
        if not nbytes:
            return b""
        which = {"VersionId": pinned.version} if pinned.version else {"IfMatch": pinned.etag}
        wanted = {**self._place(pinned.url), **which, "Range": f"bytes={offset}-{offset + nbytes - 1}"}
        with _reading(pinned.url):
            try:
                data = self._get(wanted, nbytes)
            except Exception as error:
                if _code(error) in ("PreconditionFailed", "412"):
                    raise _changed(pinned) from None
                if _code(error) not in ("InvalidRange", "416"):
                    raise
                data = b""
        return _whole(data, pinned, nbytes)

    def concatenate(self, parts: Sequence[Pinned], url: str) -> None:
        """See `secagg.storage.objects.concatenate`."""
        sizes = [part.nbytes for part in parts]
        small = min(sizes[:-1], default=_PART_NBYTES) < _PART_NBYTES
        if not parts or len(parts) > _MAX_PARTS or small or max(sizes) > _MAX_COPY_NBYTES:
            super().concatenate(parts, url)
            return
        with writing(url):
            under_way = MultipartUpload.start(url)
            try:
                with ThreadPoolExecutor(COPIES) as copies:  # all have ended when any is given up
                    etags = list(copies.map(under_way.copy, range(1, len(parts) + 1), parts))
                under_way.complete(etags, replace=True)
            except BaseException:
                with suppress(SecAggError):
                    under_way.abort()
                raise

    def _get(self, wanted: dict[str, Any], nbytes: int) -> bytes:
        for attempt in range(_TRIES):
            response = self._ask("get_object", wanted)
            with closing(response["Body"]) as body:
                chunked = "transfer-encoding" in response["ResponseMetadata"]["HTTPHeaders"]
                if chunked or response.get("ContentLength", nbytes + 1) > nbytes:  # it could be more than memory holds
                    raise TransportError("the store sends more than it was asked for")
                try:
                    return bytes(body.read())
                except Exception:
                    if attempt + 1 == _TRIES:
                        raise
            time.sleep(0.1 * 2**attempt)
        raise AssertionError

    def _place(self, url: str) -> dict[str, str]:
        bucket, key, version = self._fs.split_path(url)
        if not bucket or not key or version:
            raise FormatError(f"{shown(url)} names no object: write s3://BUCKET/KEY")
        return {"Bucket": bucket, "Key": key}

    def _ask(self, method: str, wanted: dict[str, Any]) -> dict[str, Any]:
        """Call botocore's client; what it raises is what fsspec does."""
        from s3fs.errors import translate_boto_error
        from s3fs.utils import ParamKwargsHelper

        client = _reader(self._fs)
        settings = self._fs.s3_additional_kwargs | self._fs.req_kw
        try:
            if settings:  # for all calls: not each takes all of them
                wanted = ParamKwargsHelper(client).filter_dict(method, settings | wanted)
            return dict(getattr(client, method)(**wanted))
        except Exception as error:  # noqa: BLE001  of botocore, and of what it sends by
            raise translate_boto_error(error)  # noqa: B904  which says what it came from


def _reader(fs: Any) -> Any:
    """Return botocore's own client, of the settings of an `S3FileSystem`, which keeps it.

    Threads read by it side by side, where s3fs takes all that comes through one thread of the process.
    """
    with _MAKING:
        if "secagg_reader" not in vars(fs):
            from botocore import UNSIGNED
            from botocore.config import Config
            from botocore.session import Session

            settings = {**_READING, **fs._prepare_config_kwargs()}
            own = {
                "aws_access_key_id": fs.key,
                "aws_secret_access_key": fs.secret,
                "aws_session_token": fs.token,
            }
            if fs.anon:
                own, settings["signature_version"] = {}, UNSIGNED
            own |= {"endpoint_url": fs.endpoint_url, "use_ssl": fs.use_ssl, **fs.client_kwargs}
            session = Session(**fs.kwargs)
            fs.secagg_reader = session.create_client("s3", config=Config(**settings), **own)
        return fs.secagg_reader


class _Behind:
    """A stream of a store, written in a thread: a window is on its way while the next one is filled.

    Parameters
    ----------
    file : file object of fsspec
        What is written.
    url : str
        For messages.
    drop : callable
        Removes what is there of it.
    """

    def __init__(self, file: Any, url: str, drop: Callable[[], None]) -> None:
        self._file = file
        self._url = url
        self._drop = drop
        self._given_up = False
        self._window = bytearray()
        self._under_way = Future[None]()
        self._under_way.set_result(None)

    def write(self, data: bytes | memoryview) -> None:
        """Take bytes, or raise `StorageError` if those before them could not be written."""
        left = memoryview(data)
        while left:
            room = WINDOW_NBYTES - len(self._window)
            self._window += left[:room]
            left = left[room:]
            if len(self._window) == WINDOW_NBYTES:
                self._send()

    def flush(self) -> None:
        """Return when all is written; errors as of `write`."""
        self._send()
        self._wait()

    def give_up(self) -> None:
        """Remove what is there, and what is on its way: at once, if that does not take long, or when it has come."""
        self._given_up = True
        try:
            wait([self._under_way], _STOP_SECONDS)
        finally:
            self._drop()

    def _send(self) -> None:
        self._wait()
        window, under_way = self._window, Future[None]()

        def send() -> None:
            try:
                self._file.write(window)
                under_way.set_result(None)
            except BaseException as error:  # noqa: BLE001  whoever waits gets it
                under_way.set_exception(error)
            if self._given_up:
                self._drop()

        with _writing(self._url):
            threading.Thread(target=send, name="secagg-write", daemon=True).start()  # not waited for when Python ends
        self._under_way, self._window = under_way, bytearray()

    def _wait(self) -> None:
        with _writing(self._url):
            self._under_way.result()


@contextmanager
def _reading(url: str) -> Iterator[None]:
    try:
        yield
    except SecAggError:
        raise
    except FileNotFoundError as error:
        cause = error.__cause__  # of HTTP, fsspec says so of whatever keeps it from reading
        if cause is not None and not isinstance(cause, FileNotFoundError) and not _code(cause):
            raise TransportError(f"cannot read {shown(url)}: {_reason(cause)}") from None
        raise FormatError(f"cannot read {shown(url)}: it is not there") from None
    except Exception as error:  # noqa: BLE001  each store has its own
        raise TransportError(f"cannot read {shown(url)}: {_reason(error)}") from None


@contextmanager
def _writing(url: str) -> Iterator[None]:
    try:
        yield
    except SecAggError:
        raise
    except Exception as error:  # noqa: BLE001  each store has its own
        raise StorageError(f"cannot write {shown(url)}: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    """Return what a store says, without what it was asked, which may hold a credential."""
    if isinstance(error, PermissionError) or type(error).__name__ == "NoCredentialsError":
        return "the store refuses these credentials, or has none; set those of its library, as AWS_ACCESS_KEY_ID"
    if isinstance(error, FileNotFoundError):
        return "there is no such bucket or folder"
    code = _code(error)
    return f"the store answers {code}" if code else f"the store cannot be reached ({type(error).__name__})"


def _code(error: BaseException | None) -> str:
    """Return the code of S3 that led to an error; empty if there is none."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""


def _changed(pinned: Pinned) -> FormatError:
    return FormatError(f"{shown(pinned.url)} has changed since it was looked at")


def _whole(data: bytes, pinned: Pinned, nbytes: int) -> bytes:
    if len(data) != nbytes:
        raise FormatError(f"{shown(pinned.url)} became shorter while it was read")
    return data
