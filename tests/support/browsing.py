"""A browser without a window, for pages that the product writes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

DARK = "--blink-settings=preferredColorScheme=0"  # what the system of a visitor would say


def chromium(profile: Path) -> list[str]:
    """The command that starts Chromium with a folder of its own; without one, CI fails and others skip."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("there is no Chromium: apt-get install chromium")
        pytest.skip("there is no Chromium to open the page in")
    quiet = ("background-networking", "component-update", "sync", "gpu", "dev-shm-usage")
    switches = ["--headless", "--no-sandbox", "--no-first-run", "--hide-scrollbars", f"--user-data-dir={profile}"]
    return [program, *switches, *(f"--disable-{name}" for name in quiet)]
