"""Install Pyfhel into the environment of the Python that runs this, from a wheel that is built once and kept.

Pyfhel is published as source only. Its wheel is built with pyfhel.cmake, imported once as a test, and kept in
``$XDG_CACHE_HOME/secagg/wheels`` (``~/.cache`` by default); its file name says version, Python and platform.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements" / "pyfhel.txt"
TOOLCHAIN = ROOT / "tools" / "pyfhel.cmake"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--no-cache-dir"]


def say(line: str) -> None:
    print(f"[setup] {line}", flush=True)


def kept_wheel(folder: Path) -> Path:
    """Where the wheel for the pinned version, this Python and this platform is kept."""
    version = REQUIREMENTS.read_text().split("Pyfhel==")[1].split()[0]
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    return folder / f"pyfhel-{version}-{python}-{python}-{platform}.whl"


def build(wheel: Path, log: Path) -> None:
    """Build the wheel beside its place, import it, then move it there in one step."""
    with tempfile.TemporaryDirectory(dir=wheel.parent, prefix="build-") as room, log.open("w") as output:

        def run(*command: str, **environment: str) -> None:
            subprocess.run(
                command,
                check=True,
                cwd=room,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

        # A cached wheel may come from an earlier build that went wrong, hence --no-cache-dir in PIP.
        run(*PIP, "wheel", "-v", "--no-deps", "-w", room, "-r", str(REQUIREMENTS), CMAKE_TOOLCHAIN_FILE=str(TOOLCHAIN))
        (built,) = Path(room).glob("*.whl")
        run(*PIP, "install", "--no-deps", "--target", f"{room}/check", str(built))
        run(sys.executable, "-c", "import Pyfhel", PYTHONPATH=f"{room}/check")
        os.replace(built, wheel)


def main() -> int:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "secagg"
    wheel = kept_wheel(cache / "wheels")
    log = cache / f"{wheel.stem}.log"
    try:
        wheel.parent.mkdir(parents=True, exist_ok=True)
        if wheel.exists():
            say(f"installing Pyfhel from {wheel}")
        else:
            say(f"building Pyfhel from source, about three minutes, once (log: {log})")
            build(wheel, log)
        subprocess.run([*PIP, "install", "--quiet", "--no-deps", str(wheel)], check=True)
    except (subprocess.CalledProcessError, OSError, ValueError) as error:
        if log.exists():
            print(*log.read_text(errors="replace").splitlines()[-30:], sep="\n")
            say(f"above: the end of {log}")
        failed = isinstance(error, subprocess.CalledProcessError)
        say(f"Pyfhel could not be installed: {f'a step ended with status {error.returncode}' if failed else error}")
        say("it needs a C++17 compiler with OpenMP (g++), 1 GB of free space and a package index with Pyfhel's source")
        say("all else works without it, the backend `tenseal` included; `make pyfhel` tries again")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
