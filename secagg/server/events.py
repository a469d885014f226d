"""What a server tells whoever counts: `secagg.integrations.prometheus` is one that listens."""

from __future__ import annotations

from typing import Protocol


class Events(Protocol):
    """Is told what happened. Its methods return at once and raise nothing."""

    def upload_received(self, nbytes: int, seconds: float, added: bool) -> None:
        """An upload ended well; `added` is False if the same had been added or stored before."""

    def refused(self, error_type: str) -> None:
        """A call ended with the error of this name in `secagg.errors`."""

    def round_ended(self, outcome: str, seconds: float) -> None:
        """An attempt of a round ended as ``"completed"``, ``"failed"`` or ``"voided"``, `seconds` after it began.

        That of its calibration: as ``"calibrated"``, ``"failed"`` or ``"voided"``.
        """

    def aggregate_downloaded(self, nbytes: int) -> None:
        """An aggregate, scales or a model were sent whole."""


class NoEvents:
    """Nobody listens."""

    def upload_received(self, nbytes: int, seconds: float, added: bool) -> None:
        """Do nothing."""

    def refused(self, error_type: str) -> None:
        """Do nothing."""

    def round_ended(self, outcome: str, seconds: float) -> None:
        """Do nothing."""

    def aggregate_downloaded(self, nbytes: int) -> None:
        """Do nothing."""
