"""The project manifest: who takes part in a federation, and under which configuration and key; signed."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..config import Config
from ..errors import (
    ConfigError,
    FormatError,
    IdentityError,
    KeyFileError,
    ManifestMismatchError,
    SecAggError,
    SignatureError,
    VerificationError,
    show_time,
)
from ..storage.files import Contents, Source, name_of, read_source, replace_file
from ..wire.container import (
    DIGEST_NBYTES,
    MAX_HEADER_NBYTES,
    as_bytes,
    check_keys,
    head_nbytes,
    pack_head,
    read_hex,
    unpack_head,
)
from ..wire.header import Header, check_epoch, check_site
from ..wire.layout import Layout
from ..wire.tail import SIGNATURE_NBYTES, Proof, signed_message
from .agreed_task import check_task
from .identity import PUBLIC_NBYTES, Identity, check_signature
from .parties import (
    MAX_NUMBER,
    Earlier,
    Party,
    check_certificate,
    party_to_json,
    read_certificate,
    read_earlier,
    read_number,
    read_party,
)
from .storage_hosts import check_storage

if TYPE_CHECKING:
    from ..wire.update import Update

_FIELDS = frozenset(
    [
        "authority",
        "base",
        "config",
        "earlier",
        "epoch",
        "expires",
        "issued",
        "key",
        "layout",
        "name",
        "serial",
        "server",
        "server_certificate",
        "sites",
    ]
)

#: Manifests of two machines whose clocks differ by less are not refused.
CLOCK_SKEW_SECONDS = 300

#: What expires within 30 days is to be renewed now: new kits go to every site by hand, and on two ways each.
EXPIRES_SOON_SECONDS = 30 * 86_400


@dataclass(frozen=True, repr=False)
class Project:
    """A federation as its provisioner has signed it.

    Parameters
    ----------
    name : str
        Name of the federation: 1 to 64 letters, digits, dots, hyphens or underscores.
    serial : int
        Counts the manifests of the federation, from 0; a higher one replaces all before it.
    issued, expires : int
        From when to when it is valid, in seconds since 1970, UTC.
    config : Config
        The configuration that all parties share.
    epoch : int
        Epoch of the HE key.
    key : str
        Fingerprint of the HE key, 64 hexadecimal digits.
    authority : bytes
        The provisioner's Ed25519 public key, 32 bytes.
    server : Party
        The server.
    sites : tuple of Party
        The sites, revoked ones too.
    layout : Layout, optional
        The model, where it is known beforehand.
    base : bytes, optional
        Digest of the global model that round 0 begins from, `secagg.Client.base`, where it is known beforehand. Without
        it the first update fixes it.
    earlier : tuple of Earlier
        The manifests before it, the first one first: what sites signed under them is of this federation.
    server_certificate : bytes, optional
        The server's TLS certificate in DER, of whose SHA-256 `server` speaks: the only one that sites take. Without it
        they connect to no server by TLS.
    task : mapping of str to object, optional
        What the sites agree on of their task: names to scalars or lists of them, see `secagg.trust.agreed_task`. What
        they mean is the task's own.
    storage : tuple of str
        Hosts of object stores, each ``host`` or ``host:port``: sites send updates to the URLs on them that the server
        hands out, and to no others. Empty: only to the server.
    signed : bytes
        The container that it was read from; empty if it was not read.
    """

    name: str
    serial: int
    issued: int
    expires: int
    config: Config
    epoch: int
    key: str
    authority: bytes
    server: Party
    sites: tuple[Party, ...]
    layout: Layout | None = None
    base: bytes | None = None
    earlier: tuple[Earlier, ...] = ()
    server_certificate: bytes | None = None
    task: Mapping[str, Any] | None = field(default=None, hash=False)
    storage: tuple[str, ...] = ()
    signed: bytes = field(default=b"", compare=False)

    def __repr__(self) -> str:
        return f"<project {self.name}, serial {self.serial}, epoch {self.epoch}, {len(self.sites)} sites>"

    def __post_init__(self) -> None:
        names = [party.name for party in (self.server, *self.sites)]
        for what, values in (
            ("name", names),
            ("public key", [party.public.hex() for party in (self.server, *self.sites)]),
            ("certificate", [party.certificate for party in (self.server, *self.sites)]),
        ):
            if len(set(values)) != len(values):
                twice = next(value for value in values if values.count(value) > 1)
                raise ConfigError(f"the {what} {twice} stands twice in the project; each party has its own")
        if self.layout is not None:
            fault = self.layout.under(self.config).difference(self.layout)
            if fault:
                raise ConfigError(f"the project's layout is not what its configuration encrypts: {fault}")
            self.layout.bounds(self.config.aggregation)
        if self.server_certificate is not None:
            check_certificate(self.server_certificate, self.server.certificate)
        if self.task is not None:
            object.__setattr__(self, "task", check_task(self.task))
        object.__setattr__(self, "storage", check_storage(self.storage))
        if not 0 <= self.issued < self.expires <= MAX_NUMBER:
            raise ConfigError(f"the project is issued at {self.issued} and expires at {self.expires}; give it time")

    @property
    def digest(self) -> bytes:
        """What updates name the manifest by: the digest of its head, 32 bytes.

        It is that of the manifest which was signed: one that `dataclasses.replace` has made of it for the own use keeps
        `signed`, and goes by the same digest, as what was signed under it does. The next manifest is `successor_of`.
        """
        if self.signed:  # the digest ends the head, and the signature follows
            return self.signed[-DIGEST_NBYTES - SIGNATURE_NBYTES : -SIGNATURE_NBYTES]
        return self._head()[-DIGEST_NBYTES:]

    @property
    def revoked(self) -> int:
        """How many sites are revoked; a later manifest revokes all of them, too."""
        return sum(site.revoked for site in self.sites)

    def successor_of(self, **changes: Any) -> Project:
        """Return the next manifest of the federation, unsigned, with these fields changed."""
        earlier = (*self.earlier, Earlier(self.digest, self.revoked))
        return replace(self, serial=self.serial + 1, earlier=earlier, signed=b"", **changes)

    def check_manifest(self, manifest: bytes | None, what: str) -> None:
        """Raise `ManifestMismatchError` unless an update or aggregate was made under this manifest or an earlier one.

        Parameters
        ----------
        manifest : bytes or None
            Of its header.
        what : str
            What it is, for the message.
        """
        if manifest != self.digest and all(manifest != item.digest for item in self.earlier):
            raise ManifestMismatchError(
                f"{what} was made under {_named(manifest)}, which is neither that of project {self.name} that is known "
                f"here, of serial {self.serial}, nor an earlier one: join again, to take the newest"
            )

    def voids(self, manifest: bytes | None) -> bool:
        """Return whether a site has been revoked since an earlier manifest: then a round that was open is void.

        False of a manifest that this one does not know.
        """
        return any(item.digest == manifest and item.revoked < self.revoked for item in self.earlier)

    def revoked_since(self, aggregate: Header) -> tuple[str, ...]:
        """Return who has been revoked since a sum under an earlier manifest: it cannot be used any more."""
        revoked = {site.name for site in self.sites if site.revoked}
        return tuple(name for name in aggregate.sites if name in revoked) if self.voids(aggregate.manifest) else ()

    def sign(self, authority: Identity) -> bytes:
        """Return the signed manifest, a container of kind ``"project"`` (docs/wire-format.md).

        Raises
        ------
        SignatureError
            If `authority` is not the one that the manifest names.
        """
        if authority.public != self.authority:
            raise SignatureError(f"the project {self.name} names another authority than {authority!r}")
        head = self._head()
        return head + authority.sign(head)

    @classmethod
    def from_bytes(cls, blob: Contents) -> Project:
        """Read a signed manifest. It vouches for itself: hold its `authority` against one that you know.

        Raises
        ------
        FormatError
            If it is not as docs/wire-format.md says.
        SignatureError
            If the signature is not that of the authority that it names.
        """
        blob = as_bytes(blob, "a project manifest")
        length = head_nbytes(blob)
        if len(blob) != length + SIGNATURE_NBYTES:
            raise FormatError(
                f"truncated or trailing bytes: {len(blob)} bytes, a manifest of this head has {length + 64}"
            )
        kind, data = unpack_head(blob[:length])
        if kind != "project":
            raise FormatError(f"this is of kind {kind!r}, not a project manifest")
        try:
            project = _parse(data)
        except (ConfigError, FormatError) as error:
            raise FormatError(f"the project manifest is invalid: {error}") from error
        if project._head() != blob[:length]:
            raise FormatError("the project manifest is not in canonical form")
        check_signature(project.authority, blob[length:], blob[:length], f"the authority of project {project.name}")
        return replace(project, signed=blob)

    @classmethod
    def load(cls, source: Source) -> Project:
        """Read a manifest file.

        Parameters
        ----------
        source : path, bytes, bytearray, memoryview or binary stream
            The file, or what it holds.

        Raises
        ------
        KeyFileError
            If it is missing, unreadable, damaged or signed by somebody else; if `source` is something else.
        """
        blob = read_source(source, 2 * MAX_HEADER_NBYTES, KeyFileError, "the project manifest")
        try:
            return cls.from_bytes(blob)
        except SecAggError as error:
            raise KeyFileError(f"{name_of(source)} is not a usable project manifest: {error}") from error

    def successor(self, blob: bytes) -> Project:
        """Return the manifest in `blob`, which must be this one or a later one of the same authority.

        Raises
        ------
        FormatError, SignatureError
            As `from_bytes`; an authority or a name that is not this one's is a `SignatureError`, too.
        VerificationError
            If it is older than this one: somebody plays back what has been replaced. If it is as new or later, and does
            not follow this one: the provisioner has gone back, and issued the same serials again.
        """
        other = Project.from_bytes(blob)
        if (other.authority, other.name) != (self.authority, self.name):
            raise SignatureError(
                f"the manifest of project {other.name} is not of the authority of {self.name}: the kits of server and "
                "site are of different `secagg provision`; open those of one"
            )
        if other.serial < self.serial:
            raise VerificationError(
                f"the manifest has serial {other.serial}, an earlier one had {self.serial}: the server's kit is out of "
                "date, or somebody plays back an old one"
            )
        if other != self and all(item.digest != self.digest for item in other.earlier):
            raise VerificationError(
                f"the manifest of serial {other.serial} does not follow the one of serial {self.serial} that is known "
                "here: the provisioner's folder was restored from a backup, or there are two. Go on from the newest, "
                "or put the project.secagg that is known here into it, and make the change again"
            )
        return other

    def site(self, name: str) -> Party:
        """Return a site that takes part; `IdentityError` if it does not, or no more."""
        for site in self.sites:
            if site.name == name:
                if site.revoked:
                    raise IdentityError(f"site {name!r} has been revoked in project {self.name}")
                return site
        raise IdentityError(f"site {name!r} is not in project {self.name} (serial {self.serial})")

    def check_signature(self, update: Update) -> None:
        """Hold an update or model against its site.

        Raises
        ------
        IdentityError
            If the site does not take part, or no more.
        SignatureError
            If it has not signed this very head and body; whether the body is there as its digest says, `Update.frames`
            checks.
        """
        self.check_contribution(update.header, update.tail.proofs[0])

    def check_contribution(self, header: Header, proof: Proof) -> None:
        """Hold the only contribution of a header against its site; errors as of `check_signature`."""
        party, message = self.site(header.site), signed_message(header.head, proof.body)
        check_signature(party.public, proof.signature, message, f"site {header.site!r}")

    def check_time(self, now: float | None = None) -> None:
        """Raise `IdentityError` unless the manifest is valid at `now`, in seconds since 1970 (default: the clock)."""
        now = time.time() if now is None else now
        if now < self.issued - CLOCK_SKEW_SECONDS:
            raise IdentityError(
                f"project {self.name} is not valid before {show_time(self.issued)}; is this clock right?"
            )
        if now >= self.expires:
            raise IdentityError(
                f"project {self.name} expired on {show_time(self.expires)}; have it renewed by `secagg rotate`"
            )

    def pinned(self) -> bytes:
        """Return the server's certificate in DER; `IdentityError` if the manifest has none to hold a server against."""
        if self.server_certificate is None:
            raise IdentityError(
                f"the manifest of project {self.name} (serial {self.serial}) has no certificate of the server, so that "
                "no server is known by it; have kits made anew by `secagg rotate`"
            )
        return self.server_certificate

    def check_key(self, epoch: int, fingerprint: str) -> None:
        """Raise `KeyFileError` unless epoch and fingerprint are those of the project's HE key."""
        if (epoch, fingerprint) != (self.epoch, self.key):
            raise KeyFileError(
                f"the key {fingerprint[:16]}… of epoch {epoch} is not that of project {self.name}, "
                f"{self.key[:16]}… of epoch {self.epoch}: use the kit of serial {self.serial}"
            )

    def save(self, path: str | os.PathLike[str], authority: Identity) -> None:
        """Sign the manifest and write it to a file."""
        blob = self.sign(authority)
        with replace_file(path) as file:
            file.write(blob)

    def _head(self) -> bytes:
        return pack_head(
            "project",
            {
                "authority": self.authority.hex(),
                "base": None if self.base is None else self.base.hex(),
                "config": self.config.to_dict(),
                "earlier": [[item.digest.hex(), item.revoked] for item in self.earlier],
                "epoch": self.epoch,
                "expires": self.expires,
                "issued": self.issued,
                "key": self.key,
                "layout": None if self.layout is None else self.layout.to_json(),
                "name": self.name,
                "serial": self.serial,
                "server": party_to_json(self.server),
                "server_certificate": None if self.server_certificate is None else self.server_certificate.hex(),
                "sites": [party_to_json(party) for party in self.sites],
            }
            | ({} if self.task is None else {"task": self.task})
            | ({"storage": list(self.storage)} if self.storage else {}),
        )


def _parse(data: Mapping[str, Any]) -> Project:
    fields = _FIELDS | ({"task", "storage"} & data.keys())  # left out where there is nothing to say
    check_keys(data, fields, "it", "have the federation provisioned anew (`secagg provision`)")
    if not isinstance(data["sites"], list):
        raise FormatError("its sites are no list")
    return Project(
        name=check_site(data["name"]),
        serial=read_number(data["serial"], "serial"),
        issued=read_number(data["issued"], "issued"),
        expires=read_number(data["expires"], "expires"),
        config=Config.from_dict(data["config"]),
        epoch=check_epoch(data["epoch"]),
        key=read_hex(data["key"], 32, "key").hex(),
        authority=read_hex(data["authority"], PUBLIC_NBYTES, "authority"),
        server=read_party(data["server"]),
        sites=tuple(map(read_party, data["sites"])),
        layout=None if data["layout"] is None else Layout.from_json(data["layout"]),
        base=None if data["base"] is None else read_hex(data["base"], DIGEST_NBYTES, "base"),
        earlier=read_earlier(data["earlier"]),
        server_certificate=None if data["server_certificate"] is None else read_certificate(data["server_certificate"]),
        task=check_task(data["task"]) if "task" in data else None,
        storage=check_storage(data.get("storage", ())),
    )


def _named(manifest: bytes | None) -> str:
    return "no manifest" if manifest is None else f"manifest {manifest.hex()[:16]}…"
