"""What may go into a sum: checks of an update's head and tail, and the head and tail of the sum itself.

Whatever adds, here or on other machines, admits updates by one of these: words are another matter (`secagg.words`).
"""

from __future__ import annotations

from .config import Config
from .errors import (
    CapacityError,
    ConfigError,
    LayoutError,
    ManifestMismatchError,
    MismatchError,
    QuorumError,
    RoundMismatchError,
    ScalesMismatchError,
    show,
)
from .trust.agreement import check_header, check_key, check_project
from .trust.key import ServerKey, check_role
from .trust.project import Project
from .trust.tags import tag_moduli
from .wire.header import SUMS, Contribution, Header, check_base, check_calibration, check_round, refuse_duplicates
from .wire.layout import Layout
from .wire.tail import Proof, Tail, add_tags, check_tags


class Admission:
    """Decides which updates go into the sum of a round, and says what its head and tail are.

    Parameters and errors are those of `secagg.Aggregator`.

    Attributes
    ----------
    kind : str
        As given.
    """

    def __init__(
        self,
        config: Config,
        key: ServerKey,
        round: int = 0,
        layout: Layout | None = None,
        *,
        base: bytes | None = None,
        project: Project | None = None,
        kind: str = "update",
        calibration: bytes | None = None,
    ) -> None:
        check_role(key, ServerKey)
        check_key(config, key)
        if project is not None:
            check_project(config, key, project)
            layout = layout or project.layout
        if kind not in SUMS:
            raise ConfigError(f"kind is {show(kind)}; use {' or '.join(SUMS)}")
        precision = config.aggregation.precision
        if kind == "calibration" and precision != "auto":
            raise ConfigError(f"kind is 'calibration', and with precision {precision!r} no site calibrates")
        if calibration is not None and (not config.aggregation.calibrated or kind != "update"):
            what = "an update" if kind == "update" else "a calibration"
            raise ConfigError(f"calibration is given, and {what} of precision {precision!r} is under no scales")
        self._config = config
        self.kind = kind
        self._calibration = None if calibration is None else check_calibration(calibration)
        self._key = key
        self._round = check_round(round)
        self._layout = _check_layout(layout)
        self._base = None if base is None else check_base(base)
        self._project = project
        self._manifest = None if project is None else project.digest
        self._moduli = tag_moduli(key)
        self._contributions: list[Contribution] = []
        self._proofs: list[Proof] = []
        self._tags = (0,) * len(self._moduli)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites admitted so far."""
        return tuple(contribution.site for contribution in self._contributions)

    @property
    def layout(self) -> Layout | None:
        """The layout that updates must have, once it is known."""
        return self._layout

    def check(self, header: Header) -> None:
        """Check all that a header can tell; errors as of `secagg.Aggregator.admit`."""
        check_header(header, self.kind, self._config, self._key)
        if header.round != self._round:
            raise RoundMismatchError(
                f"the {header.kind} from {header.site} is for round {header.round}, this is round {self._round}"
            )
        if self._layout is not None:
            fault = self._layout.difference(header.layout)
            if fault:
                raise LayoutError(f"the {header.kind} from {header.site} has another layout: {fault}")
        if (self._base is not None or self._contributions) and header.base != self._base:
            raise MismatchError(_other_base(header, self._round, self._base))
        if (self._project is not None or self._contributions) and header.manifest != self._manifest:
            raise ManifestMismatchError(self._other_manifest(header))
        if (self._calibration is not None or self._contributions) and header.calibration != self._calibration:
            raise ScalesMismatchError(
                f"the update from {header.site} was made under other scales than those of round {self._round}: "
                "calibrate again, and encrypt again"
            )
        if self._project is not None:
            self._project.site(header.site)
        refuse_duplicates([*self._contributions, *header.contributions])
        if len(self._contributions) == self._config.aggregation.max_clients:
            raise CapacityError(f"max_clients {len(self._contributions)} updates are in the sum already")

    def check_tail(self, header: Header, tail: Tail) -> None:
        """Check tags and signature of what has passed `check`.

        Raises
        ------
        FormatError
            If a tag is not below its modulus.
        IdentityError, SignatureError
            If there is a project, and its site has not signed this head and the body whose digest stands there.
        """
        check_tags(tail.tags, self._moduli)
        if self._project is not None:
            self._project.check_contribution(header, tail.proofs[0])

    def take(self, header: Header, tail: Tail) -> None:
        """Take what has passed all checks into the list: from now on the others must go with it."""
        self._layout, self._base, self._manifest = header.layout, header.base, header.manifest
        self._calibration = header.calibration
        self._contributions += header.contributions
        self._proofs += tail.proofs
        self._tags = add_tags(self._tags, tail.tags, self._moduli)

    def conclude(self) -> tuple[Header, Tail]:
        """Return head and tail of the sum of all that was taken; `QuorumError` below ``min_clients``."""
        fewest = self._config.aggregation.min_clients
        if len(self._contributions) < fewest or self._layout is None:
            raise QuorumError(
                f"round {self._round} has {len(self._contributions)} {self.kind}s, min_clients is {fewest}: "
                "wait for more sites"
            )
        header = Header(
            kind=SUMS[self.kind],
            round=self._round,
            epoch=self._key.epoch,
            key=self._key.fingerprint,
            params=self._config.params,
            aggregation=self._config.aggregation,
            layout=self._layout,
            contributions=tuple(self._contributions),
            base=self._base,
            manifest=self._manifest,
            calibration=self._calibration,
        )
        return header, Tail(self._tags, tuple(self._proofs))

    def _other_manifest(self, header: Header) -> str:
        """Return what is wrong with an update whose manifest is not that of its round."""
        if self._manifest is None or header.manifest is None:
            one, others = ("no", "one") if header.manifest is None else ("a", "none")
            return (
                f"the {header.kind} from {header.site} was made under {one} project manifest, those of round "
                f"{self._round} under {others}: give every Client the project (Client.load of a kit does), or none"
            )
        serial = f", of serial {self._project.serial}" if self._project else ""
        return (
            f"the {header.kind} from {header.site} was made under another project manifest than those of round "
            f"{self._round}, which are under {self._manifest.hex()[:16]}…{serial}: join again, and encrypt again"
        )


def _check_layout(layout: object) -> Layout | None:
    if layout is not None and not isinstance(layout, Layout):
        raise LayoutError(f"layout is a {type(layout).__name__}; give what Client.layout(state) or Layout.of returns")
    return layout


def _other_base(header: Header, round: int, expected: bytes | None) -> str:
    """Return what is wrong with an update whose base is not that of its round."""
    base, who = header.base, f"the {header.kind} from {header.site}"
    if base is None or expected is None:
        names, other = ("names no", "names one") if base is None else ("names a", "names none")
        return (
            f"{who} {names} global model that it began from, and the sum of round {round} {other}: "
            "let all sites give encrypt() a `base`, or none"
        )
    remedy = "load the current global model and train again"
    if round == 0:
        remedy = (
            "the first models differ, or their `context`: give all sites one seed or file, one dtype and one run id"
        )
    return (
        f"{who} began from the global model {base.hex()[:16]}…, those of round {round} begin from "
        f"{expected.hex()[:16]}…: {remedy}"
    )
