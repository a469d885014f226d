"""The two trees that are compared: the checkout as it is, and another commit in a temporary folder."""

from __future__ import annotations

import filecmp
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KERNELS = Path("secagg_ext/_cython")
SIZES = Path("benchmarks/sizes.csv")
SIDES = ("base", "change")


class GateError(Exception):
    """The gate cannot judge; the text says why, and what to do."""


def commit_of(checkout: Path, name: str) -> str:
    """Return the full hash of a commit."""
    found = _git(checkout, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if found.returncode:
        raise GateError(
            f"there is no commit {name!r} here to compare with: name another, as in `make bench-check BASE=HEAD~1`, or "
            "fetch it first (`git fetch origin main`; a shallow clone lacks history: `git fetch --unshallow`)"
        )
    return found.stdout.decode().strip()


def describe(checkout: Path) -> str:
    """Return the hash of what is checked out, with ``-dirty`` if it has been edited."""
    return _git(checkout, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*").stdout.decode().strip()


@contextmanager
def both_trees(checkout: Path, commit: str) -> Iterator[dict[str, Path]]:
    """The trees by `SIDES`, kernels built; the base's temporary folder goes in the end, whatever happens.

    Both have paths of one length: what a process has in its environment moves its stack, and that its speed.
    """
    with tempfile.TemporaryDirectory(prefix="secagg-gate-") as folder:
        tree, change = Path(folder).resolve() / "base", Path(folder).resolve() / "head"
        tree.mkdir()
        change.symlink_to(checkout)
        archive = _git(checkout, "archive", "--format=tar", commit)
        if archive.returncode:
            raise GateError(f"git archive {commit}: {archive.stderr.decode(errors='replace').strip()}")
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(tree, filter="data")
        build_kernels(tree, checkout)
        yield dict(zip(SIDES, (tree, change), strict=True))


def build_kernels(tree: Path, built: Path) -> None:
    """Build the kernels of a tree; of the same sources the checkout's serve, which make has built."""
    if not list((built / KERNELS).glob("*.so")):
        raise GateError(f"the kernels of {built} are not built: run `make setup`")
    if _same_sources(tree, built):
        for path in (built / KERNELS).glob("*.so"):
            shutil.copy2(path, tree / KERNELS)
        return
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise GateError(f"the base's kernels do not build ({' '.join(command[1:])}):\n{last}")


def sizes_changed(tree: Path, checkout: Path) -> bool:
    """Whether the change has other recorded sizes than the base: then messages may have grown on purpose."""
    return (tree / SIZES).exists() and not _same(tree / SIZES, checkout / SIZES)


def _same_sources(one: Path, other: Path) -> bool:
    names = [
        {path.name for path in (tree / KERNELS).iterdir() if path.suffix in (".pyx", ".pxd", ".h")}
        for tree in (one, other)
    ]
    paths = [KERNELS / name for name in names[0]] + [Path("setup.py")]
    return names[0] == names[1] and all(_same(one / path, other / path) for path in paths)


def _same(one: Path, other: Path) -> bool:
    return other.exists() and filecmp.cmp(one, other, shallow=False)


def _git(checkout: Path, *args: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", *args], cwd=checkout, capture_output=True, check=False)
