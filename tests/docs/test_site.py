"""The documentation site: it builds without a warning, has all that is public, asks nobody else, and is shown."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import ClassVar

import numpy as np
import pytest
from browsing import DARK, chromium
from PIL import Image
from sphinx.util.inventory import InventoryFile

ROOT = Path(__file__).resolve().parents[2]
API = "docs/reference/secagg.site.html"
GROUND = {"light": (0xFF, 0xFF, 0xFF), "dark": (0x13, 0x14, 0x16)}  # of a page's text, in the theme
GROUPS = ["Start", "Operate", "Understand", "Extend", "Reference"]


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """What `make docs` runs."""
    command = [sys.executable, "-m", "sphinx", "-q", "-E", "-W", "-c", str(source / "docs")]
    path = os.pathsep.join([str(source), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [*command, "-d", str(out.parent / "doctrees"), str(source), str(out)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


class Page(HTMLParser):
    """What of a page the tests look at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "html"
    done = build(ROOT, out)
    assert (done.returncode, done.stderr) == (0, "")
    return out


def test_everything_public_is_in_the_reference(site: Path) -> None:
    documented = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    names = {name for kind in ("class", "exception", "function", "data") for name in documented.data[f"py:{kind}"]}
    faces = [path.stem for path in (ROOT / "docs" / "reference").glob("*.rst")]
    for package in ROOT.glob("integrations/*/__init__.py"):
        assert f"secagg.integrations.{package.parent.name}" in faces
    for face in faces:
        module = import_module(face)
        public = getattr(module, "__all__", [name for name in vars(module) if name.endswith(("Error", "Warning"))])
        assert public
        assert {name for name in public if not {f"{face}.{name}", f"secagg.{name}"} & names} == set()
    assert not [name for name in names if any(part.startswith("_") for part in name.split("."))]


def test_every_page_is_there(site: Path) -> None:
    pages = {path.relative_to(ROOT) for kind in ("md", "ipynb", "rst") for path in (ROOT / "docs").rglob(f"*.{kind}")}
    overview = Page((site / "index.html").read_text(encoding="utf-8"))
    links = {tag.get("href") for name, tag in overview.tags if name == "a" and "internal" in tag.get("class", "")}
    for page in {*pages, Path("CHANGELOG.md"), Path("CONTRIBUTING.md")}:
        assert (site / page.with_suffix(".html")).is_file()
        assert page.with_suffix(".html").as_posix() in links


def test_it_asks_for_nothing_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    for path in pages:
        for name, tag in Page(path.read_text(encoding="utf-8")).tags:
            if name in ("script", "img", "iframe", "source") or (name == "link" and tag["rel"] not in ("next", "prev")):
                wanted = tag.get("src") or tag.get("href") or "#"
                assert not re.match(r"(\w+:)?//", wanted), f"{path.name}: {wanted}"
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(\w+:)?//|@import", path.read_text(encoding="utf-8")), path


def test_faults_are_errors(tmp_path: Path) -> None:
    """Broken links, pages that nothing leads to, and parameters that there are not."""
    (tmp_path / "docs" / "reference").mkdir(parents=True)
    for name in ("conf.py", "site.css"):
        shutil.copy(ROOT / "docs" / name, tmp_path / "docs")
    (tmp_path / "docs" / "own-task.md").write_text("# Task\n\n## Some\n\n[over](../README.md#there)\n")
    readme = "# Name\n\n## There\n\n[a](docs/own-task.md#some) [a](docs/own-task.md) [a](#there) [a](docs/conf.py)\n"
    (tmp_path / "README.md").write_text(readme)
    done = build(tmp_path, tmp_path / "site" / "html")
    assert (done.returncode, done.stderr) == (0, "")
    broken = ["docs/none.md", "docs/own-task.md#no-section", "#not-here", "docs/none.py"]
    (tmp_path / "README.md").write_text(readme + "".join(f"\n[a]({link})\n" for link in broken) + "\n![](none.png)\n")
    (tmp_path / "docs" / "forgotten.md").write_text("# Forgotten\n")
    (tmp_path / "docs" / "reference" / "secagg.rst").write_text("Title\n=====\n\n.. autofunction:: faulty.do\n")
    docstring = "Do it.\n\n    Parameters\n    ----------\n    gone : int\n        What is not there.\n    "
    (tmp_path / "faulty.py").write_text(f'def do(new):\n    """{docstring}"""\n')
    done = build(tmp_path, tmp_path / "site" / "html")
    assert done.returncode == 1
    for said in ("docs/none.md", "no-section", "not-here", "docs/none.py", "none.png", "forgotten.md", "{'gone'}"):
        assert len([line for line in done.stderr.splitlines() if said in line]) == 1, (said, done.stderr)


class Handler(SimpleHTTPRequestHandler):
    """Serves files, and keeps which it could not."""

    missing: ClassVar[list[str]] = []

    def log_message(self, format: str, *args: object) -> None:
        pass

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self.missing.append(self.path)
        super().send_error(code, message, explain)


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(site))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
    assert set(Handler.missing) <= {"/favicon.ico"}  # there is none


def look(browser: list[str], url: str, shot: Path, *switches: str) -> tuple[Page, np.ndarray]:
    """Open a page: what is in it when its scripts have run, and how it looks."""
    command = [*browser, "--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom", *switches]
    done = subprocess.run(
        [*command, f"--screenshot={shot}", url], capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    return Page(done.stdout), np.asarray(Image.open(io.BytesIO(shot.read_bytes())).convert("RGB"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return chromium(tmp_path_factory.mktemp("profile"))


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("path", "title"), [("", "secagg"), (API, "secagg.site")])
def test_a_browser_shows_it(
    path: str, title: str, theme: str, browser: list[str], address: str, tmp_path: Path
) -> None:
    scheme = [DARK] if theme == "dark" else []
    page, pixels = look(browser, f"{address}/{path}", tmp_path / "shot.png", "--window-size=1400,1000", *scheme)
    assert re.search(rf"^\s*{re.escape(title)}\b", page.text)
    assert re.search("(?s)" + ".*".join(rf"\b{group}\s" for group in GROUPS), page.text)
    assert any("theme-toggle" in tag.get("class", "") for name, tag in page.tags if name == "button")
    assert tuple(pixels[2, 700]) == GROUND[theme]
    assert pixels[:, 400:1000].std() > 15  # text is on it


def test_search_finds_what_is_public(browser: list[str], address: str, tmp_path: Path) -> None:
    page, _ = look(browser, f"{address}/search.html?q=GlobalModel", tmp_path / "shot.png")
    found = {tag.get("href", "") for name, tag in page.tags if name == "a"}
    assert f"{API}#secagg.site.GlobalModel" in found
