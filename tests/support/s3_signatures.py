"""Who may ask: the layer in front of moto that holds S3's rules on signatures, bodies and conditions.

moto 5.2 takes every presigned URL, expired or tampered with, and answers 500 to one while it checks the signatures of
others; it holds no body against the digests in its headers; and between its look whether an object is there and its
write another may come. Here each request is signed anew by botocore's own signer, with the secret of the key that it
names, and compared. The checksums x-amz-checksum-* of what is uploaded are not checked here either.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import io
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]

REGION = "us-east-1"
_SCHEME = "AWS4-HMAC-SHA256"
#: How far a clock may be off; how long a presigned URL may live at most.
_SKEW = datetime.timedelta(minutes=15)
_WEEK = 7 * 24 * 3600
_REASONS = {
    307: "Temporary Redirect",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    411: "Length Required",
    412: "Precondition Failed",
    500: "Internal Server Error",
    503: "Slow Down",
}


class Refused(Exception):
    """What S3 answers in place of what was asked."""

    def __init__(self, status: int, code: str, message: str = "", **headers: str) -> None:
        super().__init__(code)
        self.status, self.code, self.message, self.headers = status, code, message or code, headers

    def answer(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        body = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<Error><Code>{self.code}</Code><Message>{escape(self.message)}</Message></Error>"
        ).encode()
        headers = {"Content-Type": "application/xml", "Content-Length": str(len(body)), **self.headers}
        start_response(f"{self.status} {_REASONS[self.status]}", list(headers.items()))
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


class Signatures:
    """Lets through what one of `secrets` has signed; the keys among `readers` may not write.

    Parameters
    ----------
    app : WSGI application
    secrets : mapping
        Of access key to secret key.
    readers : set of str
        Access keys.
    """

    def __init__(self, app: App, secrets: Mapping[str, str], readers: frozenset[str]) -> None:
        self._app, self._secrets, self._readers = app, secrets, readers
        self._conditional = threading.Lock()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        try:
            _check_signature(environ, self._secrets, self._readers)
            _check_body(environ)
        except Refused as refused:
            return refused.answer(environ, start_response)
        if environ["REQUEST_METHOD"] in ("PUT", "POST") and "HTTP_IF_NONE_MATCH" in environ:
            with self._conditional:
                return self._app(environ, start_response)
        return self._app(environ, start_response)


def _check_signature(environ: Environ, secrets: Mapping[str, str], readers: frozenset[str]) -> None:
    query = parse_qs(environ["QUERY_STRING"], keep_blank_values=True)
    given = environ.get("HTTP_AUTHORIZATION")
    if given is not None:
        scheme, _, rest = given.partition(" ")
        fields = dict(part.strip().partition("=")[::2] for part in rest.split(","))
        date = environ.get("HTTP_X_AMZ_DATE", "")
    elif "X-Amz-Signature" in query:
        scheme = query.get("X-Amz-Algorithm", [""])[0]
        fields = {name: query.get(f"X-Amz-{name}", [""])[0] for name in ("Credential", "SignedHeaders", "Signature")}
        date = query.get("X-Amz-Date", [""])[0]
    else:
        raise Refused(403, "AccessDenied", "Access Denied")
    if scheme != _SCHEME:
        raise Refused(400, "InvalidRequest", f"Please use {_SCHEME}")
    key, *scope = fields.get("Credential", "").split("/")
    if key not in secrets:
        raise Refused(403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.")
    if "HTTP_X_AMZ_SECURITY_TOKEN" in environ or "X-Amz-Security-Token" in query:
        raise Refused(400, "InvalidToken", "The provided token is malformed or otherwise invalid.")
    if scope != [date[:8], REGION, "s3", "aws4_request"]:
        raise Refused(400, "AuthorizationHeaderMalformed", f"the credential is not of {REGION}, or not of the date")
    _check_time(date, None if given is not None else query.get("X-Amz-Expires", [""])[0])
    names = fields.get("SignedHeaders", "").split(";")
    sent = _headers(environ)
    loose = [name for name in sent if name.startswith("x-amz-") and name not in names]
    if "host" not in names or loose or (given is not None and "x-amz-content-sha256" not in names):
        raise Refused(403, "AccessDenied", "There were headers present in the request which were not signed")
    signed = {name: sent.get(name, "") for name in names}
    credentials = Credentials(key, secrets[key])
    signer: SigV4Auth = S3SigV4Auth(credentials, "s3", REGION)
    if given is None:
        signer = S3SigV4QueryAuth(credentials, "s3", REGION)
    request = AWSRequest(environ["REQUEST_METHOD"], _url(environ), headers=signed)
    request.context["timestamp"] = date
    expected = signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)
    if not hmac.compare_digest(expected, fields.get("Signature", "")):
        raise Refused(403, "SignatureDoesNotMatch", "The request signature we calculated does not match")
    if key in readers and environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
        raise Refused(403, "AccessDenied", "Access Denied")


def _check_time(date: str, expires: str | None) -> None:
    now = datetime.datetime.now(datetime.UTC)
    try:
        signed = datetime.datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.UTC)
        seconds = None if expires is None else int(expires)
    except ValueError:
        raise Refused(400, "AuthorizationQueryParametersError", "no date, or no time to live") from None
    if seconds is None:
        if abs(now - signed) > _SKEW:
            raise Refused(403, "RequestTimeTooSkewed", "The difference between the times is too large.")
        return
    if not 0 < seconds <= _WEEK:
        raise Refused(400, "AuthorizationQueryParametersError", f"X-Amz-Expires must be 1 to {_WEEK}")
    if signed - now > _SKEW:
        raise Refused(403, "AccessDenied", "Request is not yet valid")
    if now > signed + datetime.timedelta(seconds=seconds):
        raise Refused(403, "AccessDenied", "Request has expired")


def read_body(environ: Environ) -> None:
    """Take a body whole: who is refused in the middle of sending sees a broken connection in place of the answer."""
    if environ["REQUEST_METHOD"] not in ("PUT", "POST"):
        return
    length = environ.get("CONTENT_LENGTH")
    chunked = environ.get("HTTP_TRANSFER_ENCODING") == "chunked" and "HTTP_X_AMZ_DECODED_CONTENT_LENGTH" in environ
    if not length and not chunked:
        raise Refused(411, "MissingContentLength", "You must provide the Content-Length HTTP header.")
    try:
        body = environ["wsgi.input"].read(*([] if chunked else [int(length)]))
    except OSError:  # in the middle of a chunk
        body = b""
    if (b"\n0\r\nx-amz-" not in b"\n" + body) if chunked else (len(body) != int(length)):
        raise Refused(400, "IncompleteBody", "You did not provide the number of bytes that the headers promise")
    environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body)), "wsgi.input_terminated": False}


def _check_body(environ: Environ) -> None:
    """Hold a body against what the headers say of it; of a signed query, nothing says its digest."""
    if environ["REQUEST_METHOD"] not in ("PUT", "POST"):
        return
    body = environ["wsgi.input"].getvalue()
    digest = environ.get("HTTP_X_AMZ_CONTENT_SHA256", "")
    if len(digest) == 64 and not hmac.compare_digest(digest, hashlib.sha256(body).hexdigest()):
        raise Refused(400, "XAmzContentSHA256Mismatch", "The provided SHA256 does not match what was computed.")
    if digest.startswith("STREAMING-AWS4"):
        raise Refused(400, "InvalidRequest", "signatures of chunks are not known here")
    md5 = environ.get("HTTP_CONTENT_MD5")
    if md5 is not None and md5.encode() != base64.b64encode(hashlib.md5(body).digest()):
        raise Refused(400, "BadDigest", "The Content-MD5 you specified did not match what we received.")


def _headers(environ: Environ) -> dict[str, str]:
    headers = {name[5:].lower().replace("_", "-"): environ[name] for name in environ if name.startswith("HTTP_")}
    for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if environ.get(name):
            headers[name.lower().replace("_", "-")] = environ[name]
    return headers


def _url(environ: Environ) -> str:
    """What was signed: as it was sent, less the signature itself."""
    parts = urlsplit("//host" + environ["RAW_URI"])
    pairs = [pair for pair in parts.query.split("&") if pair and not pair.startswith("X-Amz-Signature=")]
    return parts._replace(
        scheme=environ["wsgi.url_scheme"], netloc=environ["HTTP_HOST"], query="&".join(pairs)
    ).geturl()
