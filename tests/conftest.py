"""What holds for the whole suite."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import settings

# Modules that several test files share: `container` and `federation`.
sys.path.insert(0, str(Path(__file__).parent / "support"))

settings.register_profile("secagg", deadline=None)  # a slow machine is no fault
settings.load_profile("secagg")
