"""Who may call: the project, the certificate of the connection, and the clock, at every call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import grpc
import pytest
from running import SMALL, Running, certify, make_signed, messages, serving, typed, wait_until
from signed import DAY, Signed, identities

import secagg
from secagg.errors import IdentityError, KeyFileError, KeyMismatchError, SignatureError
from secagg.integrations.grpc import Server
from secagg.integrations.grpc import secagg_pb2 as pb
from secagg.integrations.grpc import secagg_pb2_grpc as pb_grpc
from secagg.integrations.grpc.refusals import error_of
from secagg.server.members import MAX_CALLS, Members
from secagg.trust import Authority, Tls


@dataclass
class Place:
    """An authority, the certificates that it issued, and who takes part."""

    authority: Authority
    signed: Signed
    tls: dict[str, Tls]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    authority = Authority.create(tmp_path_factory.mktemp("authority"))
    signed, tls = certify(make_signed(), authority)
    return Place(authority, signed, tls)


@pytest.fixture
def running(place: Place, tmp_path: Path) -> Iterator[Running]:
    with serving(place.signed, tmp_path / "run", place.tls) as running:
        yield running


def calls(stub: pb_grpc.SecureAggregationStub, update: secagg.Update) -> dict[str, Callable[[], object]]:
    """Each call of the service, in the name of the site of an update."""
    chunks = list(map(bytes, update.chunks()))
    return {
        "Join": lambda: stub.Join(pb.JoinRequest(site=update.header.site), timeout=120.0),
        "Resume": lambda: stub.Resume(pb.Chunk(data=chunks[0]), timeout=120.0),
        "Upload": lambda: stub.Upload(messages(chunks), timeout=120.0),
        "Download": lambda: next(stub.Download(pb.DownloadRequest(round=0), timeout=120.0)),
        "Status": lambda: stub.Status(pb.StatusRequest(), timeout=120.0),
    }


def assert_refused(running: Running, tls: Tls, update: secagg.Update, match: str, but: tuple[str, ...] = ()) -> None:
    """Every call under a certificate is refused, but some."""
    under = replace(running, certificates={"it": tls})
    with under.stub("it") as stub:
        for name, call in calls(stub, update).items():
            if name not in but:
                with pytest.raises(IdentityError, match=match):
                    typed(call)
    status = running.server.status()
    assert (status.added, status.waiting_for) == ((), ())
    assert running.spool() == []


def test_a_site_that_takes_part(running: Running) -> None:
    running.run_round(0)
    assert running.server.status().project_serial == running.signed.project.serial == 1


def test_a_site_that_was_revoked(place: Place, tmp_path: Path) -> None:
    """Also under the certificate that it still has, and with an update from before."""
    update = place.signed.site("site-2").encrypt(SMALL)
    later = replace(place.signed, project=place.signed.without("site-2"))
    with serving(later, tmp_path / "run", place.tls) as running:
        assert_refused(running, place.tls["site-2"], update, "site 'site-2' has been revoked")
        running.run_round(0, names=["site-1", "site-3"])


def test_a_site_that_the_project_does_not_know(running: Running, place: Place, tmp_path: Path) -> None:
    """Its certificate is of the authority: of a site that was never added, say."""
    update = place.signed.site().encrypt(SMALL)
    tls = place.authority.issue_site("site-9", folder=tmp_path / "site-9")
    assert_refused(running, tls, update, r"site 'site-9' is not in project project \(the server has manifest 1\)")


def test_another_certificate_of_a_site(running: Running, place: Place, tmp_path: Path) -> None:
    """One that was lost, say, and replaced in the project."""
    update = place.signed.site().encrypt(SMALL)
    tls = place.authority.issue_site("site-1", folder=tmp_path / "site-1")
    message = r"certificate of 'site-1' is not the one in project .* \(the server has manifest 1\): if this kit has a"
    assert_refused(running, tls, update, message)


def test_a_second_certificate_under_the_servers_name(running: Running, place: Place, tmp_path: Path) -> None:
    tls = place.authority.issue_server(folder=tmp_path / "server")
    message = r"certificate of the server is not the one in project .* \(the server has manifest 1\): if this kit"
    assert_refused(running, tls, place.signed.site().encrypt(SMALL), message)


def test_a_certificate_of_another_authority(running: Running, place: Place, tmp_path: Path) -> None:
    foreign = Authority.create(tmp_path / "foreign").issue_site("site-1")
    half = Tls(place.tls["site-1"].ca, foreign.cert, foreign.key)
    for tls in (half, foreign):
        with running.session("site-1", tls=tls) as session, pytest.raises(IdentityError, match="refuses the certif"):
            session.join()
    assert running.server.status().waiting_for == ()


def test_the_server_may_look_and_not_take_part(running: Running, place: Place) -> None:
    update = place.signed.site().encrypt(SMALL)
    match = "under the certificate of 'server'"
    assert_refused(running, place.tls["server"], update, match, but=("Status", "Download"))
    running.run_round(0)
    with running.stub("server") as stub:
        assert list(stub.Status(pb.StatusRequest(), timeout=120.0).aggregates) == [0]
        chunks = [message.data for message in stub.Download(pb.DownloadRequest(round=0), timeout=120.0)]
    assert secagg.Update.from_bytes(b"".join(chunks)).header.round == 0


def test_the_name_of_another(running: Running, place: Place) -> None:
    update = place.signed.site("site-1").encrypt(SMALL)
    match = "site 'site-1' .* under the certificate of 'site-2'"
    assert_refused(running, place.tls["site-2"], update, match, but=("Status", "Download"))


def test_the_signature_of_another(running: Running, place: Place) -> None:
    """Whoever has a site's certificate only cannot sign for it."""
    project, own = place.signed.project, identities(6)[-1]
    sites = [replace(site, public=own.public) if site.name == "site-1" else site for site in project.sites]
    # It has the manifest, too, whose digest its update names.
    forged = place.signed.site("site-1", identity=own, project=replace(project, sites=tuple(sites))).encrypt(SMALL)
    with running.session("site-1") as session, pytest.raises(SignatureError):
        session.upload(forged)
    assert running.server.status().added == ()


def test_an_update_of_an_old_epoch(place: Place, tmp_path: Path) -> None:
    """The key was rotated, and the site has not unpacked its new kit."""
    new, tls = make_signed(epoch=1), place.tls
    parties = {name: getattr(place.signed.project, name) for name in ("server", "server_certificate", "sites")}
    project = replace(new.project, **parties)
    rotated = replace(new, project=secagg.Project.from_bytes(project.sign(new.authority)))
    update = place.signed.site().encrypt(SMALL)
    with serving(rotated, tmp_path / "run", tls) as running:
        for send in (running.resume, running.send):
            with pytest.raises(KeyMismatchError, match="is of epoch 0 of the key, expected epoch 1"):
                send(update)
        with running.session("site-1") as session:
            assert session.status().epoch == 1
            assert (session.status().added, running.spool()) == ((), [])
        running.run_round(0)


# The clock.


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """By how many seconds the server's clock is ahead."""
    ahead = [0.0]
    late = partial(Members, clock=lambda: time.time() + ahead[0])
    monkeypatch.setattr("secagg.server.federation.Members", late)
    return ahead


def test_a_connection_that_outlives_its_certificate(place: Place, clock: list[float], tmp_path: Path) -> None:
    now = int(time.time())
    long = place.signed.reissue(issued=now - 1000 * DAY, expires=now + 1000 * DAY)
    signed, tls = replace(place.signed, project=long), place.tls
    with serving(signed, tmp_path / "run", tls) as running, running.session("site-1") as session:
        session.join()
        for ahead in (366 * DAY, -30 * DAY):
            clock[0] = ahead
            for call in (session.status, session.join, lambda: session.download(0, tmp_path / "x")):
                with pytest.raises(IdentityError, match=r"certificate of 'site-1' is valid from .* UTC"):
                    call()
            clock[0] = 0.0
            session.status()


def test_a_project_that_has_expired(place: Place, clock: list[float], tmp_path: Path) -> None:
    with serving(place.signed, tmp_path / "run", place.tls) as running, running.session("site-1") as session:
        session.join()
        clock[0] = 2 * DAY
        for call in (session.status, session.join):
            with pytest.raises(IdentityError, match="expired on"):
                call()
    with serving(place.signed, tmp_path / "run-2") as running, running.session("site-1", tls=None) as session:
        with pytest.raises(IdentityError, match="expired on"):  # without certificates, too
            session.status()
        clock[0] = 0.0
        session.status()


# How many calls.


def test_one_party_does_not_take_all_calls(running: Running) -> None:
    """A site with a fault, which calls and calls, harms itself only."""
    with running.stub("site-1") as stub, ExitStack() as held:
        waiting = [stub.Download(pb.DownloadRequest(round=0), timeout=120.0) for _ in range(MAX_CALLS + 1)]
        held.callback(lambda: [call.cancel() for call in waiting])
        wait_until(lambda: any(call.done() for call in waiting))
        for call in [call for call in waiting if call.done()]:
            assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "'site-1' has too many calls under way" in str(call.details())
            assert error_of(call) is None  # it may come again
        with running.session("site-2") as session:
            session.join()
            session.upload(running.signed.site("site-2").encrypt(SMALL, round=0))
    with running.session("site-1") as session:  # it tries again until a place is free
        session.join()


# The constructor.


def test_an_identity_that_is_not_the_servers(place: Place, tmp_path: Path) -> None:
    keys = place.signed.federation.keys
    for identity in (place.signed.identities["site-1"], identities(6)[-1]):
        with pytest.raises(KeyFileError, match="is not the signing key of server 'server'"):
            Server(
                place.signed.config,
                keys.server,
                tmp_path / "run",
                insecure=True,
                project=place.signed.project,
                identity=identity,
            )
    assert not (tmp_path / "run").exists()


def test_a_key_that_is_not_the_projects(place: Place, tmp_path: Path) -> None:
    other = make_signed().federation.keys.server
    for _ in range(2):  # the run folder is free after the first one
        with pytest.raises(KeyFileError, match="is not that of project"):
            Server(place.signed.config, other, tmp_path / "run", insecure=True, project=place.signed.project)
