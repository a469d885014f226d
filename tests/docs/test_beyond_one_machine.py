"""docs/beyond-one-machine.md as it stands there: its federation in a folder and in a bucket, and what its roles may."""

from __future__ import annotations

import json
import re
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import yaml
from deposits import SITES as SERVED
from deposits import World, world
from moto.iam.policy_validation import IAMPolicyDocumentValidator
from provisioned import PROJECT, Federation
from s3_policies import actions, allowed, refused, used
from s3_server import READER, S3Server

import secagg
from secagg import cli
from secagg.errors import VerificationError
from secagg.scheme.codec import codec_for
from secagg.scheme.scales import bin_of, bound_of
from secagg.setup.project_file import ProjectFile
from secagg.shards import RangeDone, SumJob, aggregate, sum_range
from secagg.site import GlobalModel
from secagg.storage import objects

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "beyond-one-machine.md").read_text(encoding="utf-8")
SITES = ("site-1", "site-2", "site-3", "site-4")
ROUNDS = 2
BUCKET = "brain-fl"


def blocks(language: str = "") -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


def lines(program: str, having: str = "") -> list[str]:
    return [line for line in "".join(blocks()).splitlines() if line.split()[0] == program and having in line]


def files(bucket: str = BUCKET) -> dict[str, dict[str, Any]]:
    """The JSON of the page, each by the name that stands last before it."""
    parts = re.split(r"^```json\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    names = [re.findall(r"`([\w-]+\.json)`", text)[-1] for text in parts[:-1:2]]
    assert len(set(names)) == len(blocks("json"))
    return {name: json.loads(text.replace(BUCKET, bucket)) for name, text in zip(names, parts[1::2], strict=True)}


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Those of the page."""
    return Federation.make(tmp_path_factory.mktemp("kits"), **yaml.safe_load(blocks("yaml")[0]))


def federate(kits: Federation, place: str, add: Callable[[int], None]) -> list[GlobalModel]:
    """Run the page's `site.py` for each site; `add` is called when all of them wait for the sum of a round."""
    waiting, sums = threading.Semaphore(0), [threading.Event() for _ in range(ROUNDS)]

    def take_part(name: str) -> dict[str, Any]:
        code = blocks("python")[0].replace("sys.argv[1]", repr(str(kits[name]))).replace("sys.argv[2]", repr(place))
        assert "time.sleep(10)" in code
        left = iter(sums)
        given: dict[str, Any] = {
            "network": {"w": np.zeros(1000, np.float32)},
            "train": lambda state: {"w": state["w"] + np.float32(0.5)},
            "dataset": [None] * int(name[-1]),
            "rounds": ROUNDS,
            "pause": lambda: (waiting.release(), next(left).wait(60)),
        }
        exec(code.replace("time.sleep(10)", "pause()"), given)
        return given

    with ThreadPoolExecutor(len(SITES)) as pool:
        done = [pool.submit(take_part, name) for name in SITES]
        try:
            for round, there in enumerate(sums):
                for _ in SITES:
                    assert waiting.acquire(timeout=60), [future.exception(0) for future in done if future.done()]
                add(round)
                there.set()
        finally:
            for there in sums:
                there.set()
        models = [future.result(60)["model"] for future in done]
    for model in models:  # the first round measures only
        assert (model.round, model.base) == (ROUNDS, models[0].base)
        place, config = bin_of(0.5 * len(SITES)), model.site.config
        assert place is not None
        error = codec_for(config.params, config.aggregation).mean_error(
            len(SITES), sum(range(1, len(SITES) + 1)), bound_of(place)
        )
        np.testing.assert_allclose(model.state["w"], 0.5 * (ROUNDS - 1), atol=error)
        assert error < 0.1
    return models


def run(line: str, kits: Federation, round: int = 0) -> int:
    words = shlex.split(re.sub(r"(round-|aggregate-|--round )0", rf"\g<1>{round}", line))[1:]
    return cli.main([str(kits["server"]) if word == "server" else word for word in words])


def test_every_command_line_is_understood() -> None:
    parser = cli._parser()
    found = [shlex.split(line)[1:] for line in lines("secagg")]
    assert {words[0] for words in found} == {"provision", "unpack", "aggregate", "inspect", "serve"}
    for words in found:
        parser.parse_args(words)
    programs = {line.split()[0] for line in "".join(blocks()).splitlines()}
    assert programs == {"secagg", "aws", "mkdir", "python"}


def test_exit_codes_are_those_of_the_command() -> None:
    table = PAGE.partition("| exit code |")[2].partition("\n\n")[0]
    told = {int(code) for codes in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE) for code in codes.split(",")}
    assert told == ({code for _, code, _ in cli.EXIT_CODES} - {8}) | {0, 130, 143}  # of 8, sites hear


def test_storage_is_a_line_of_a_project(tmp_path: Path) -> None:
    assert len(blocks("yaml")) == 2
    project = PROJECT | yaml.safe_load(blocks("yaml")[1])
    (tmp_path / "project.yaml").write_text(yaml.safe_dump(project), encoding="utf-8")
    assert ProjectFile.load(tmp_path / "project.yaml").storage == (f"{BUCKET}.s3.eu-central-1.amazonaws.com",)


def test_a_folder(
    kits: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (mkdir,) = lines("mkdir")
    for folder in mkdir.split()[2:]:
        Path(folder).mkdir(parents=True)
    (add,), (show,) = lines("secagg", "aggregate 'brain/"), lines("secagg", "inspect brain/")

    def added(round: int) -> None:
        assert run(add, kits, round) == 0
        assert f"the aggregate of round {round}, the sum of {len(SITES)} updates" in capsys.readouterr().out

    models = federate(kits, "brain", added)
    assert run(show, kits) == 0
    assert "sites              site-1, site-2, site-3, site-4\n" in capsys.readouterr().out
    Path("brain/round-0/site-2.secagg").unlink()
    assert run(add, kits) == 1
    assert "there is something else" in capsys.readouterr().err
    Path("brain/round-0/site-1.secagg").write_bytes(b"")
    Path("brain/aggregate-0.secagg").unlink()
    assert run(add, kits) == 6
    assert "left out: brain/round-0/site-1.secagg: " in capsys.readouterr().err

    late = models.pop()  # a sum that lacks one
    Path("brain/round-2").mkdir()
    for model in models:
        model.encrypt_to(f"brain/round-2/{model.site.name}.secagg", model.state, 1)
    late.encrypt(late.state, 1)
    assert run(add, kits, ROUNDS) == 0
    with secagg.Update.open("brain/aggregate-2.secagg") as lacking:
        with pytest.raises(VerificationError, match="site-4"):
            late.apply(lacking)
        late.withdraw()
        late.apply(lacking)
        for model in models:
            model.apply(lacking)
    assert {model.base for model in models} == {late.base}


class Worker:
    """Another machine, which adds all ranges: its requests are kept apart from the others."""

    def __init__(self, s3: S3Server) -> None:
        self._s3 = s3
        self.requests: list[dict[str, str]] = []
        self.others: list[dict[str, str]] = []

    def run(self, job: SumJob, indices: Iterable[int]) -> Iterator[RangeDone]:
        self.others += self._s3.requests()
        self._s3.clear()
        for index in indices:
            yield sum_range(job, index)
        self.requests += self._s3.requests()
        self._s3.clear()


def test_a_bucket(kits: Federation, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each role asks for what its policy allows, and its policy allows nothing that is never asked for."""
    bucket = s3.bucket(versioned=True)
    policies = files(bucket)
    worker, sites, adder = Worker(s3), list[dict[str, str]](), list[dict[str, str]]()
    (add,) = (line.replace(BUCKET, bucket) for line in lines("secagg", "aggregate 's3://"))

    def added(round: int) -> None:
        sites.extend(s3.requests())
        s3.clear()
        if round:
            assert run(add, kits, round) == 0
        else:
            words = shlex.split(add)
            aggregate(kits["server"], [words[2]], words[-1], 0, pool=worker)
        adder.extend(s3.requests())
        s3.clear()

    models = federate(kits, f"s3://{bucket}", added)
    sites += s3.requests()
    adder += worker.others
    go_on(f"s3://{bucket}/round-9/site-1.secagg")
    sites += s3.requests()
    for name, requests in (
        ("round-9/site-1.secagg", sites),
        ("aggregate-9.secagg", adder),
        ("aggregate-9.secagg.0.part", worker.requests),
    ):
        s3.clear()
        give_up(f"s3://{bucket}/{name}")
        requests += s3.requests()
    mine = [request for request in sites if "/site-" not in request["key"] or "/site-1." in request["key"]]
    check(policies["site-1.json"], mine)
    check(policies["aggregate.json"], adder)
    check(policies["worker.json"], worker.requests)
    assert refused(policies["aggregate.json"], worker.requests) == []  # where it adds by itself
    for name in ("round-0/site-2.secagg", "aggregate-0.secagg"):
        assert not allowed(policies["site-1.json"], "s3:PutObject", f"{bucket}/{name}")
        assert not allowed(policies["worker.json"], "s3:PutObject", f"{bucket}/{name}")
    models[0].save_model(f"s3://{bucket}/model.secagg")
    late = GlobalModel(models[1].site, {"w": np.zeros(1000, np.float32)})
    with secagg.Update.open(f"s3://{bucket}/model.secagg") as stored:
        late.load_model(stored)
    assert (late.round, late.base) == (ROUNDS, models[0].base)
    for name, value in s3.environment(READER).items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    (show,) = (line.replace(BUCKET, bucket) for line in lines("secagg", "inspect s3://"))
    assert run(show, kits) == 0


def give_up(url: str) -> None:
    """Break an upload off when a part of it is there, which is then taken back."""

    def write() -> None:
        with objects.write(url) as file:
            file.write(bytes(17 << 20))
            raise KeyError

    with pytest.raises(KeyError):
        write()


def go_on(url: str) -> None:
    """Save what an earlier process has not saved whole."""

    def begun() -> Iterator[bytes]:
        yield bytes(8 << 20)
        raise KeyError

    with pytest.raises(KeyError):
        objects.save(begun(), 9 << 20, url)
    objects.save([bytes(9 << 20)], 9 << 20, url)


def check(policy: Mapping[str, Any], requests: list[dict[str, str]]) -> None:
    assert refused(policy, requests) == []
    assert used(requests) == actions(policy)


def test_a_server_with_a_bucket(tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round: an update that is broken off, one that the bucket loses, and what is deleted after it."""
    (serve,) = lines("secagg", "serve ")
    prefix = serve.split()[-1].removeprefix(f"s3://{BUCKET}/")
    monkeypatch.setattr(World, "url", property(lambda made: f"s3://{made.bucket}/{prefix}"))
    with world(tmp_path, s3, monkeypatch) as made:
        made.bucket = s3.bucket(versioned=True)
        updates = [made.update(site) for site in SERVED]
        s3.clear()
        with made.serving() as server:
            made.join(server, *SERVED)
            made.deposit(server, updates[0])
            with pytest.raises(KeyError):
                made.deposit(server, updates[2], progress=stop)
        requests = s3.requests()
        lose(s3, made.bucket, "/site-1-")
        s3.clear()
        with made.serving() as server:
            with made.session(server, "site-3") as session:
                session.skip(0)
            for update in updates[:2]:
                assert not made.deposit(server, update)
            with made.session(server, "site-1") as session, session.download(0, tmp_path / "aggregate") as aggregate:
                assert aggregate.header.sites == SERVED[:2]
        with made.serving():  # what it had no time for, it does now
            deadline = time.monotonic() + 30
            while made.objects or s3.uploads(made.bucket):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        requests += [request for request in s3.requests() if "list-type" not in request["query"]]  # this test's own
        check(files(made.bucket)["server.json"], requests)


def lose(s3: S3Server, bucket: str, name: str) -> None:
    """Delete an object, with all its versions."""
    client = s3.client()
    found = [item for item in client.list_object_versions(Bucket=bucket)["Versions"] if name in item["Key"]]
    assert found
    for item in found:
        client.delete_object(Bucket=bucket, Key=item["Key"], VersionId=item["VersionId"])


def stop(done: int, total: int) -> None:
    raise KeyError


def test_the_bucket_takes_its_settings(s3: S3Server, bucket: str) -> None:
    client = s3.client()
    for line in lines("aws"):
        words = shlex.split(line.replace(BUCKET, bucket))
        assert words[:2] == ["aws", "s3api"]
        options = {camel(name): value(text, bucket) for name, text in zip(words[3::2], words[4::2], strict=True)}
        getattr(client, words[2].replace("-", "_"))(**options)
    assert client.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    assert set(client.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values()) == {True}
    assert min(map(int, re.findall(r'Days\w*": (\d+)', PAGE))) > 0
    kept = client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert kept == files()["lifecycle.json"]["Rules"]
    assert json.loads(client.get_bucket_policy(Bucket=bucket)["Policy"]) == files(bucket)["bucket-policy.json"]


def test_policies_are_policies() -> None:
    of_roles = files().keys() - {"lifecycle.json", "bucket-policy.json"}
    assert of_roles == {"site-1.json", "aggregate.json", "worker.json", "server.json"}
    for name in of_roles:
        IAMPolicyDocumentValidator(json.dumps(files()[name])).validate()


def camel(option: str) -> str:
    return "".join(word.capitalize() for word in option.removeprefix("--").split("-"))


def value(text: str, bucket: str) -> Any:
    """What AWS's command makes of an option's value."""
    if text.startswith("file://"):
        found = files(bucket)[text.removeprefix("file://")]
        return json.dumps(found) if "Statement" in found else found
    if "=" not in text:
        return text
    return {name: {"true": True}.get(word, word) for name, word in (pair.split("=") for pair in text.split(","))}
