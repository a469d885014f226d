"""The project manifest: what is in it, who may sign it, what replaces it, and everything that is none."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from federation import VARIANTS, federate, other_keys
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from signed import DAY, ROUND, member, sign_federation

import secagg
from secagg import Aggregator, Client, Identity, Layout, Project
from secagg.errors import (
    ConfigError,
    DigestError,
    FormatError,
    IdentityError,
    KeyFileError,
    LayoutError,
    MismatchError,
    SecAggError,
    SignatureError,
    StorageError,
    VerificationError,
)
from secagg.trust.agreement import check_project
from secagg.trust.project import CLOCK_SKEW_SECONDS
from secagg.wire.container import PREAMBLE_NBYTES, digest, pack_head
from secagg.wire.tail import SIGNATURE_NBYTES

SIGNED = sign_federation(federate("flashe"))
PROJECT, AUTHORITY = SIGNED.project, SIGNED.authority
BLOB = PROJECT.sign(AUTHORITY)
HEADER = json.loads(BLOB[PREAMBLE_NBYTES : -SIGNATURE_NBYTES - 32])


def sign(header, kind: str = "project", authority: Identity = AUTHORITY) -> bytes:
    """A manifest of any header, digest and signature right."""
    head = pack_head(kind, header)
    return head + authority.sign(head)


def sign_text(text: bytes) -> bytes:
    head = BLOB[:12] + len(text).to_bytes(4, "little") + text
    head += digest(head)
    return head + AUTHORITY.sign(head)


def test_round_trip(tmp_path):
    assert Project.from_bytes(BLOB) == PROJECT
    assert Project.from_bytes(BLOB).sign(AUTHORITY) == BLOB
    path = tmp_path / "project.secagg"
    PROJECT.save(path, AUTHORITY)
    assert path.read_bytes() == BLOB
    assert Project.load(path) == PROJECT
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_config(variant):
    federation = federate(variant, encrypt={"exclude": ["c", "d.*"]}, max_abs={"default": 1.0, "w": 0.5})
    layout = Layout.of(
        {"w": np.zeros((2, 3)), "c": np.zeros(()), "d.e": np.zeros(0), "n": np.zeros(2, int)}, federation.config
    )
    project = sign_federation(federation, layout=layout, base=bytes(range(32))).project
    assert project.config == federation.config
    assert project.layout == layout
    assert project.base == bytes(range(32))


def test_it_is_a_value():
    with pytest.raises(FrozenInstanceError):
        PROJECT.serial = 1
    assert pickle.loads(pickle.dumps(PROJECT)) == PROJECT  # nothing in it is secret
    for identity in (AUTHORITY, SIGNED.server, *SIGNED.identities.values()):
        secret = identity._key.private_bytes_raw()
        assert secret not in BLOB
        assert secret.hex().encode() not in BLOB


def test_what_it_may_hold():
    """No site yet; names and numbers at the ends of their ranges."""
    changes = {"name": "x" * 64, "serial": 2**53, "issued": 0, "expires": 2**53, "epoch": 2**32 - 1, "sites": ()}
    project = replace(PROJECT, **changes)
    assert Project.from_bytes(project.sign(AUTHORITY)) == project


def test_many_sites():
    sites = tuple(
        replace(PROJECT.sites[0], name=f"site-{n}", public=n.to_bytes(32, "big"), certificate=f"{n:064x}")
        for n in range(1000)
    )
    project = replace(PROJECT, sites=sites)
    assert Project.from_bytes(project.sign(AUTHORITY)).site("site-999").public == (999).to_bytes(32, "big")


# Who signs.


def test_another_authority_does_not_sign():
    with pytest.raises(SignatureError, match="names another authority than Identity"):
        PROJECT.sign(Identity.generate())


@pytest.mark.parametrize(
    "signature", [bytes(64), b"\1" * 64, Identity.generate().sign(BLOB[:-64])], ids=["zeros", "ones", "a stranger's"]
)
def test_another_signature(signature):
    with pytest.raises(SignatureError, match="the authority of project project"):
        Project.from_bytes(BLOB[:-64] + signature)


def test_a_signature_of_something_else():
    """That of a site over an update, say, by one who holds both keys: messages have purposes."""
    other = SIGNED.reissue()
    with pytest.raises(SignatureError):
        Project.from_bytes(BLOB[:-64] + other.sign(AUTHORITY)[-64:])


# Bytes that are no manifest.


@pytest.mark.parametrize("place", range(0, 8 * len(BLOB), 37))
def test_a_flipped_bit(place):
    blob = bytearray(BLOB)
    blob[place // 8] ^= 1 << place % 8
    with pytest.raises((FormatError, SignatureError)):
        Project.from_bytes(bytes(blob))


@settings(max_examples=300)
@given(st.integers(0, 8 * (len(BLOB) - 32 - 64) - 1))
def test_a_flipped_bit_and_its_digest(place):
    head = bytearray(BLOB[: -64 - 32])
    head[place // 8] ^= 1 << place % 8
    blob = bytes(head) + digest(bytes(head)) + BLOB[-64:]
    with pytest.raises((FormatError, SignatureError)):
        Project.from_bytes(blob)


@pytest.mark.parametrize("length", [0, 1, 8, 15, 16, 17, 100, len(BLOB) - 65, len(BLOB) - 64, len(BLOB) - 1])
def test_truncated(length):
    with pytest.raises(FormatError):
        Project.from_bytes(BLOB[:length])


def test_trailing_bytes():
    with pytest.raises(FormatError, match="trailing bytes"):
        Project.from_bytes(BLOB + b"\0")


@settings(max_examples=200)
@given(st.binary(max_size=300) | st.binary(max_size=200).map(lambda tail: BLOB[:16] + tail))
@example(b"")
def test_any_bytes(blob):
    with pytest.raises(FormatError):
        Project.from_bytes(blob)


def test_another_kind():
    for kind in ("update", "aggregate", "model", "server-key", "client-key"):
        with pytest.raises(FormatError, match=f"this is of kind '{kind}', not a project manifest"):
            Project.from_bytes(sign(HEADER, kind))


def test_an_update_is_no_manifest():
    update = SIGNED.encrypt([{"w": np.zeros(3, np.float32)}])[0]
    with pytest.raises(FormatError):
        Project.from_bytes(update.to_bytes())
    with pytest.raises(FormatError, match="this is a project, not an update"):
        secagg.Update.from_bytes(BLOB)


TEXTS = {
    "spaces": lambda text: text.replace(b":", b": ", 1),
    "order": lambda text: json.dumps(dict(reversed(HEADER.items())), separators=(",", ":")).encode(),
    "escapes": lambda text: text.replace(b"site-1", b"\\u0073ite-1"),
    "twice": lambda text: text.replace(b'"epoch":0', b'"epoch":0,"epoch":0'),
    "a fraction": lambda text: text.replace(b'"epoch":0', b'"epoch":0.0'),
    "a huge number": lambda text: text.replace(b'"serial":0', b'"serial":' + b"9" * 5000),
    "NaN": lambda text: text.replace(b'"serial":0', b'"serial":NaN'),
    "deep": lambda text: b"[" * 100_000,
    "a list": lambda text: b"[]",
    "no text": lambda text: b"\xff" + text,
    "capitals": lambda text: text.replace(AUTHORITY.public.hex().encode(), AUTHORITY.public.hex().upper().encode()),
    "defaults left out": lambda text: text.replace(b',"max_weight":1.0', b""),
}


@pytest.mark.parametrize("change", TEXTS.values(), ids=TEXTS)
def test_another_text(change):
    """One manifest, one form: signed by the authority itself, another is refused."""
    text = BLOB[PREAMBLE_NBYTES : -SIGNATURE_NBYTES - 32]
    assert sign_text(text) == BLOB
    assert change(text) != text
    with pytest.raises(FormatError):
        Project.from_bytes(sign_text(change(text)))


JUNK = [
    None, True, False, 0, 1, -1, 2, 0.5, 1e308, 2**53, 2**53 + 1, 2**64, 10**400, "", "x", "ab" * 32, "AB" * 32,
    "../..", "a\0b", "\ud800", "é", "x" * 65, "..", [], [[]], [1], {}, {"": 0}, {"name": "x"}, ["x"] * 4,
]  # fmt: skip


def places(value, path=()):
    """Every place in JSON."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def put(value, path, junk):
    if not path:
        return junk
    copied = value.copy()
    copied[path[0]] = put(value[path[0]], path[1:], junk)
    return copied


@pytest.mark.parametrize("path", [path for path in places(HEADER) if path], ids=lambda path: ".".join(map(str, path)))
def test_junk_in_every_place(path):
    """Signed by the authority: typed, or a project that says the same when it is read again."""
    for junk in JUNK:
        blob = sign(put(HEADER, path, junk))
        try:
            project = Project.from_bytes(blob)
        except SecAggError:
            continue
        assert project.sign(AUTHORITY) == blob


def test_missing_and_unknown_keys():
    for path in places(HEADER):
        if path and isinstance(path[-1], str):
            *parents, last = path
            block = HEADER
            for key in parents:
                block = block[key]
            less = {key: value for key, value in block.items() if key != last}
            for changed in (less, {**block, "more": 0}):
                with pytest.raises(SecAggError):
                    Project.from_bytes(sign(put(HEADER, tuple(parents), changed)))


def test_a_header_over_the_cap():
    sites = tuple(
        replace(PROJECT.sites[0], name="x" * 57 + f"{n:07}", public=n.to_bytes(32, "big"), certificate=f"{n:064x}")
        for n in range(20_000)
    )
    with pytest.raises(FormatError, match="the format allows"):
        replace(PROJECT, sites=sites).sign(AUTHORITY)


TWICE = {
    "a name": {"name": "site-1"},
    "the server's name": {"name": "server"},
    "a key": {"public": PROJECT.sites[0].public},
    "the server's key": {"public": PROJECT.server.public},
    "a certificate": {"certificate": PROJECT.sites[0].certificate},
}


@pytest.mark.parametrize("changes", TWICE.values(), ids=TWICE)
def test_what_stands_twice(changes):
    sites = (*PROJECT.sites[:2], replace(PROJECT.sites[2], **changes))
    with pytest.raises(ConfigError, match="twice in the project"):
        replace(PROJECT, sites=sites)
    header = put(HEADER, ("sites", 2), {**HEADER["sites"][2], **json_of(changes)})
    with pytest.raises(FormatError, match="twice in the project"):
        Project.from_bytes(sign(header))


def json_of(changes):
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in changes.items()}


def test_a_revoked_site_keeps_its_name():
    """Nobody else gets it: an old signature would pass for the new site's."""
    revoked = replace(PROJECT.sites[0], revoked=True)
    with pytest.raises(ConfigError, match="name site-1 stands twice"):
        replace(PROJECT, sites=(revoked, member("site-1", Identity.generate())))


@pytest.mark.parametrize(
    "times", [(5, 5), (5, 4), (-1, 5), (0, 2**53 + 1)], ids=["empty", "backwards", "negative", "huge"]
)
def test_times_that_are_none(times):
    with pytest.raises(ConfigError, match="give it time"):
        replace(PROJECT, issued=times[0], expires=times[1])


# The server's certificate.


DER = bytes(range(256)) * 32
PINNED = replace(
    PROJECT,
    server=replace(PROJECT.server, certificate=hashlib.sha256(DER).hexdigest()),
    server_certificate=DER,
)


def test_the_servers_certificate():
    assert Project.from_bytes(PINNED.sign(AUTHORITY)) == PINNED
    assert PINNED.pinned() == DER
    with pytest.raises(IdentityError, match=r"no certificate of the server.*have kits made anew by `secagg rotate`"):
        PROJECT.pinned()


CERTIFICATES = {
    "another": (DER[1:], r"the server's certificate is [0-9a-f]{16}…, the server is listed with [0-9a-f]{16}…"),
    "none": (b"", "the server's certificate is e3b0c44298fc1c14…"),
    "too long": (DER + b"\0", "has 8193 bytes, a manifest takes 8192: name fewer hosts"),
}


@pytest.mark.parametrize(("certificate", "match"), CERTIFICATES.values(), ids=CERTIFICATES)
def test_a_certificate_that_is_not_the_servers(certificate, match):
    with pytest.raises(ConfigError, match=match):
        replace(PINNED, server_certificate=certificate)
    header = {**HEADER, "server": {**HEADER["server"], "certificate": PINNED.server.certificate}}
    with pytest.raises(FormatError, match=match):
        Project.from_bytes(sign({**header, "server_certificate": certificate.hex()}))
    if len(certificate) > len(DER):  # listed as it is
        listed = {**HEADER["server"], "certificate": hashlib.sha256(certificate).hexdigest()}
        with pytest.raises(FormatError, match=match):
            Project.from_bytes(sign({**header, "server": listed, "server_certificate": certificate.hex()}))


@pytest.mark.parametrize("value", [DER.hex()[:-1], DER.hex().upper(), "zz" * 100, " " + DER.hex(), 7, [], {}, True])
def test_a_certificate_that_is_no_hexadecimal(value):
    header = {**HEADER, "server": {**HEADER["server"], "certificate": PINNED.server.certificate}}
    assert Project.from_bytes(sign({**header, "server_certificate": DER.hex()})) == PINNED
    with pytest.raises(FormatError, match="server_certificate is "):
        Project.from_bytes(sign({**header, "server_certificate": value}))


def test_a_manifest_without_the_key_of_the_certificate():
    with pytest.raises(FormatError, match=r"without \['server_certificate'\]: .*secagg provision"):
        Project.from_bytes(sign({key: value for key, value in HEADER.items() if key != "server_certificate"}))


# Files.


def test_a_damaged_file(tmp_path):
    path = tmp_path / "project.secagg"
    for content in (b"", b"x", BLOB[:-1], BLOB + b"\0", BLOB[:-64] + bytes(64), bytes(9 << 20)):
        path.write_bytes(content)
        with pytest.raises(KeyFileError, match=re.escape(str(path))):
            Project.load(path)


@pytest.mark.parametrize("kind", ["nothing", "a folder", "a pipe", "a NUL"])
def test_what_is_no_file(kind, tmp_path):
    path = tmp_path / "project.secagg"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a NUL":
        path = f"{path}\0"
    with pytest.raises(KeyFileError, match="cannot read the project manifest"):
        Project.load(path)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(StorageError):
        PROJECT.save(tmp_path / "nowhere" / "project.secagg", AUTHORITY)


# What replaces it.


def test_successor():
    assert PROJECT.successor(BLOB) == PROJECT
    later = SIGNED.without("site-2")
    assert PROJECT.successor(later.sign(AUTHORITY)) == later
    far = replace(SIGNED, project=later).reissue(serial=10**6, epoch=7)  # as after rotations
    assert PROJECT.successor(far.sign(AUTHORITY)) == later.successor(far.sign(AUTHORITY)) == far


def test_an_older_one():
    later = SIGNED.without("site-2")
    with pytest.raises(VerificationError, match=r"has serial 0, an earlier one had 1.*plays back an old one"):
        later.successor(BLOB)


def test_another_of_the_same_serial():
    """Two manifests that both replace the last one: one of them hides something."""
    other = replace(PROJECT, expires=PROJECT.expires + 1)
    with pytest.raises(VerificationError, match=r"serial 0 does not follow the one of serial 0 .* project\.secagg"):
        PROJECT.successor(other.sign(AUTHORITY))


def test_a_later_one_of_another_course():
    """The provisioner's folder was restored from a backup: serials begin anew where the backup was made."""
    taken = SIGNED.without("site-2")
    forked = replace(SIGNED, project=SIGNED.without("site-3"))
    later = replace(forked, project=forked.reissue()).reissue(epoch=1)
    for project in (forked.project, later, replace(PROJECT, serial=5)):
        with pytest.raises(VerificationError, match=r"does not follow the one of serial 1 .* restored from a backup"):
            taken.successor(project.sign(AUTHORITY))
    mended = replace(SIGNED, project=taken).reissue(serial=7)
    assert taken.successor(mended.sign(AUTHORITY)) == mended


def test_a_successor_of_another_authority():
    mallory = Identity.generate()
    other = replace(PROJECT, serial=1, authority=mallory.public)
    with pytest.raises(SignatureError, match="not of the authority of project"):
        PROJECT.successor(other.sign(mallory))


def test_a_successor_of_another_project():
    other = replace(PROJECT, serial=1, name="other")
    with pytest.raises(SignatureError, match="of project other is not of the authority of project"):
        PROJECT.successor(other.sign(AUTHORITY))


def test_a_damaged_successor():
    with pytest.raises(DigestError):
        PROJECT.successor(BLOB[:40] + b"!" + BLOB[41:])


# Who takes part.


def test_members():
    assert [PROJECT.site(name).public for name in SIGNED.names] == [one.public for one in SIGNED.identities.values()]
    for name in ("site-9", "server", "", "SITE-1", "site-1 "):
        with pytest.raises(IdentityError, match=r"is not in project project \(serial 0\)"):
            PROJECT.site(name)
    later = SIGNED.without("site-2")
    with pytest.raises(IdentityError, match="'site-2' has been revoked in project project"):
        later.site("site-2")
    assert later.site("site-1") == PROJECT.site("site-1")


# When it is valid.


def test_time():
    PROJECT.check_time()
    for now in (PROJECT.issued - CLOCK_SKEW_SECONDS, PROJECT.issued, PROJECT.expires - 0.001):
        PROJECT.check_time(now)
    with pytest.raises(IdentityError, match=r"not valid before \d{4}-\d\d-\d\d \d\d:\d\d UTC; is this clock right"):
        PROJECT.check_time(PROJECT.issued - CLOCK_SKEW_SECONDS - 1)
    for now in (PROJECT.expires, PROJECT.expires + DAY, 1e12, 0.0):
        with pytest.raises(IdentityError):
            PROJECT.check_time(now)


def test_the_ends_of_time():
    project = replace(PROJECT, issued=2**53 - 1, expires=2**53)
    with pytest.raises(IdentityError, match="not valid before"):
        project.check_time()


@pytest.mark.parametrize("shift", [-2 * DAY, 2 * DAY], ids=["expired", "not yet"])
def test_a_site_at_another_time(shift):
    """Nothing is sent and nothing is used when the manifest is not valid."""
    project = replace(PROJECT, issued=PROJECT.issued + shift, expires=PROJECT.expires + shift)
    site, state = SIGNED.site(project=project), {"w": np.zeros(3, np.float32)}
    aggregate = SIGNED.add(SIGNED.encrypt([state] * 2))
    for action in (lambda: site.encrypt(state), lambda: site.decrypt(aggregate)):
        with pytest.raises(IdentityError, match="expired|not valid before"):
            action()


def test_a_model_at_another_time(tmp_path):
    path, state = tmp_path / "model.secagg", {"w": np.zeros(3, np.float32)}
    SIGNED.site().encrypt_model(path, state, round=ROUND)
    site = SIGNED.site(project=replace(PROJECT, issued=0, expires=1))
    with pytest.raises(IdentityError, match="expired on 1970-01-01"):
        site.encrypt_model(tmp_path / "other.secagg", state, round=ROUND)
    with secagg.Update.open(path) as model, pytest.raises(IdentityError, match="expired"):
        site.decrypt_model(model)
    assert os.listdir(tmp_path) == [path.name]


# Who uses it.


def test_the_key_must_be_the_projects():
    keys = other_keys(SIGNED.federation).keys
    with pytest.raises(KeyFileError, match="is not that of project project"):
        Client(SIGNED.config, keys.client, "site-1", identity=SIGNED.identities["site-1"], project=PROJECT)
    with pytest.raises(KeyFileError, match="use the kit of serial 0"):
        Aggregator(SIGNED.config, keys.server, project=PROJECT)
    rotated = replace(PROJECT, epoch=1)
    with pytest.raises(KeyFileError, match="of epoch 1"):
        SIGNED.site(project=rotated)


def test_a_party_may_ask_for_more_sites():
    demanding = SIGNED.federation.but(min_clients=3)
    check_project(demanding.config, demanding.keys.server, SIGNED.project)
    strict = replace(SIGNED.project, config=demanding.config)
    with pytest.raises(MismatchError, match=r"min_clients 2, project project \(serial 0\) demands 3 or more"):
        check_project(SIGNED.federation.config, SIGNED.federation.keys.server, strict)


def test_the_config_must_be_the_projects():
    for changes in ({"max_clients": 3}, {"max_abs": 0.5}, {"encrypt": {"include": ["w"]}}):
        other = SIGNED.federation.but(**changes)
        with pytest.raises(
            MismatchError, match=rf"is not that of project project \(serial 0\): .*{next(iter(changes))}"
        ):
            replace(SIGNED, federation=other).site()
        with pytest.raises(MismatchError):
            replace(SIGNED, federation=other).aggregator()


def test_the_library_is_each_sites_own_choice():
    signed = sign_federation(federate("seal"))
    replace(signed, federation=signed.federation.using("tenseal")).site()


def test_the_signing_key_must_be_the_sites():
    for identity in (None, Identity.generate(), SIGNED.identities["site-2"], SIGNED.server):
        with pytest.raises(KeyFileError, match="lists the signing key .* for site 'site-1'"):
            SIGNED.site(identity=identity)


def test_a_site_that_is_not_in_it():
    for name, project, match in (
        ("site-9", PROJECT, "is not in project"),
        ("server", PROJECT, "is not in project"),
        ("site-1", SIGNED.without("site-1"), "has been revoked"),
    ):
        identity = SIGNED.identities["site-1"]
        with pytest.raises(IdentityError, match=match):
            Client(SIGNED.config, SIGNED.federation.keys.client, name, identity=identity, project=project)


def test_the_layout_is_the_projects():
    state = {"w": np.zeros(3, np.float32)}
    layout = Layout.of(state, SIGNED.config)
    project = SIGNED.reissue(layout=layout)
    aggregator = SIGNED.aggregator(project=project)
    assert aggregator.layout == layout
    update = SIGNED.site(project=project).encrypt(state, round=ROUND)
    with pytest.raises(LayoutError, match="is another than that of project"):
        SIGNED.site("site-2", project=project).layout({"w": np.zeros(4, np.float32)})
    other = SIGNED.site("site-2", project=project).encrypt({"w": np.zeros(4, np.float32)}, round=ROUND)
    aggregator.add(update)
    with pytest.raises(LayoutError, match="has another layout"):
        aggregator.add(other)
    with pytest.raises(LayoutError):
        SIGNED.aggregator(project=project).add(other)


@settings(suppress_health_check=[HealthCheck.filter_too_much])
@given(st.text(max_size=70))
@example("a" * 64)
@example(".")
def test_names(name):
    """What may name a site may name a project; the rest is refused when it is read."""
    allowed = re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) and name.strip(".")
    try:
        blob = sign({**HEADER, "name": name})
    except UnicodeEncodeError:
        return
    if allowed:
        assert Project.from_bytes(blob).name == name
    else:
        with pytest.raises(FormatError):
            Project.from_bytes(blob)
