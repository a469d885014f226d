"""What holds for the whole suite."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("secagg", deadline=None)  # a slow machine is no fault
settings.load_profile("secagg")
