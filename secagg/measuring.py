"""Which scales an update is made under, where they are measured: read from what was exchanged, and verified first."""

from __future__ import annotations

from .config import Config
from .encryption import Encryption
from .errors import ConfigError, LayoutError, MismatchError, StateError, show
from .scheme.scales import Scales
from .trust.agreement import check_header
from .trust.contributions import check_contributions
from .trust.failures import Failures
from .trust.key import ClientKey
from .trust.project import Project
from .wire.layout import Layout
from .wire.update import Update, check_update


class Measuring:
    """Reads scales for one site; it remembers the latest ones, which many ask for more than once.

    Parameters
    ----------
    config, key, project, failures
        Those of the client.
    encryption : Encryption
        Decrypts.
    """

    def __init__(
        self, config: Config, key: ClientKey, project: Project | None, failures: Failures, encryption: Encryption
    ) -> None:
        self._config, self._key, self._project = config, key, project
        self._failures, self._encryption = failures, encryption
        self._latest: tuple[bytes, Scales] | None = None

    def of_round(
        self, calibration: object, layout: Layout, round: int, base: bytes | None
    ) -> tuple[Scales | None, bytes | None]:
        """Return the scales of a round, and what names them in headers; None and None where they are not measured.

        Parameters
        ----------
        calibration : Update or Scales or None
            As of `secagg.Client.encrypt`.
        layout, round, base
            Of the update.

        Raises
        ------
        StateError
            If there is no calibration, and the round needs one.
        ConfigError
            If there is one, and the configuration has ``max_abs``; or it is something else.
        SecAggError
            Whatever it is refused for; see `secagg.Client.decrypt`.
        """
        precision = self._config.aggregation.precision
        if precision == "fixed":
            if calibration is not None:
                raise ConfigError("a calibration is given, and the scales of this configuration follow from max_abs")
            return None, None
        if precision == "auto":
            return self._calibrated(calibration, layout, round, base)
        scales = self._previous(calibration, layout, round, base)
        number = round.to_bytes(8, "little")
        return scales, self._key.subkey(b"secagg scales v1", number, base or b"", scales.to_bytes())

    def remember(self, source: Update, scales: Scales | None) -> None:
        """Keep the scales of the round that begins with an aggregate or a stored model."""
        if scales is not None:
            self._latest = source.digest(), scales

    def after(self, source: Update) -> Scales | None:
        """Return the scales of the round that begins with an aggregate or stored model that was decrypted last."""
        latest = self._latest  # another thread may replace it meanwhile
        return latest[1] if latest and latest[0] == source.digest() else None

    def _calibrated(self, calibration: object, layout: Layout, round: int, base: bytes | None) -> tuple[Scales, bytes]:
        """Return the scales that a sum of calibrations gives, and its digest."""
        if calibration is None:
            raise StateError(
                f"round {round} has no scales yet: send what calibrate(state, weight, round) returns, and pass the sum "
                "of all sites' as encrypt(…, calibration=…); or give aggregation.max_abs"
            )
        summed = check_update(calibration)
        header = summed.header
        self._check(summed, "scales", layout, round, base)
        if header.base != base:
            raise MismatchError(
                f"the scales of round {round} are of another global model than this update: give calibrate and encrypt "
                "the same `base`"
            )
        name, found = summed.digest(), self.after(summed)
        if found is None:
            with self._failures.guard():
                found = self._encryption.decrypt_scales(summed)
            self.remember(summed, found)
        return found, name

    def _previous(self, calibration: object, layout: Layout, round: int, base: bytes | None) -> Scales:
        """Return the scales that follow from the aggregate of the round before."""
        tensors = len(layout.sent)
        if calibration is None and round == 0:
            return Scales.unknown(tensors)
        if isinstance(calibration, Scales):
            if len(calibration.bins) != tensors:
                raise LayoutError(f"there are scales of {len(calibration.bins)} tensors, and {tensors} are sent")
            return calibration
        if calibration is None:
            raise StateError(
                f"round {round} has no scales: pass the aggregate of the round before as encrypt(…, calibration=…)"
            )
        aggregate = check_update(calibration)
        if round == 0:
            raise ConfigError(f"round 0 has no round before it: {show(aggregate)} gives it no scales")
        self._check(aggregate, "aggregate", layout, round - 1, None)
        if aggregate.next_base != base:
            raise MismatchError(f"the aggregate of round {round - 1} leads to another global model than this update's")
        found = self.after(aggregate)
        if found is None:
            with self._failures.guard():
                found = self._encryption.decrypt(aggregate).following
            self.remember(aggregate, found)
        assert found is not None  # it was made with the same precision
        return found

    def _check(self, summed: Update, kind: str, layout: Layout, round: int, base: bytes | None) -> None:
        header, fewest = summed.header, self._config.aggregation.min_clients
        check_header(header, kind, self._config, self._key.server)
        fault = layout.difference(header.layout)
        if fault:
            raise LayoutError(f"the {kind} of round {header.round} are of another model than this update: {fault}")
        check_contributions(summed, fewest, self._project, round=round, base=base, own=None, receipt=None)
