"""Two trees that take turns: base, change, change, base, and the other way round the next time."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from trees import SIDES, GateError

WORKER = Path(__file__).with_name("worker.py")
#: A turn repeats its work until it has lasted so long.
TURN_SECONDS = 0.05
#: How often both processes are started anew: where memory happens to lie makes one some percent slower, a kernel up to
#: 30 %, for as long as it lives.
GENERATIONS = 8
#: So many blocks of four turns at least, whatever the time: the interval of 99 % then leaves out the two outermost of
#: each end, which something else on the machine may have made.
MIN_BLOCKS = 16


class Report(Protocol):
    def __call__(self, done: float, total: float) -> object: ...


@dataclass
class Measured:
    """What was measured of one benchmark."""

    nbytes: dict[str, int | None] = field(default_factory=dict)  # of the message, a side
    problems: dict[str, str] = field(default_factory=dict)  # of sides that cannot run it
    repeats: int = 1
    #: Side -> clock -> seconds of one repeat, two turns a block.
    turns: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: {side: {"cpu": [], "wall": []} for side in SIDES}
    )
    #: Kind and amount.
    calibration: tuple[str, int] = ("", 0)
    #: CPU seconds of the calibration in each block, the mean of both sides.
    calibrations: list[float] = field(default_factory=list)


class Side:
    """The process that times one tree."""

    def __init__(self, name: str, tree: Path) -> None:
        self.name = name
        environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONHASHSEED": "0", "SECAGG_EXT": "cython"}
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), str(tree)],
            cwd=tree,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ready(self) -> None:
        problem = self._answer("start").get("problem")
        if problem:
            raise GateError(f"the {self.name} cannot be timed: {problem}")

    def ask(self, *command: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer is missing, too
        return self._answer(" ".join(map(str, command)))

    def _answer(self, command: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise GateError(f"the process of the {self.name} ended ({self._process.wait()}) at {command!r}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def measure(trees: Mapping[str, Path], names: Sequence[str], seconds: float, report: Report) -> dict[str, Measured]:
    """Time benchmarks on both trees in turn, for about so many seconds.

    Parameters
    ----------
    trees : mapping of str to Path
        Of `SIDES`.
    names : sequence of str
        Of the benchmarks.
    seconds : float
        What it may last, preparing included.
    report : callable
        Is told the seconds done and all of them.
    """
    found = {name: Measured() for name in names}
    start, blocks = time.monotonic(), 0
    for generation in range(1, GENERATIONS + 1):
        with _sides(trees, SIDES if generation % 2 else SIDES[::-1]) as sides:
            runnable = list(_prepared(sides, found, lambda: report(min(time.monotonic() - start, seconds), seconds)))
            calibrations = _calibrated(sides, [found[name] for name in runnable])
            done = 0
            while runnable and (
                time.monotonic() - start < seconds * generation / GENERATIONS or done < MIN_BLOCKS / GENERATIONS
            ):
                order = SIDES if blocks % 2 else SIDES[::-1]
                times = {
                    (kind, amount): [_turn(sides[side], f"{kind} {amount}", repeats) for side in order]
                    for (kind, amount), repeats in calibrations.items()
                }
                for name in runnable:
                    _block(sides, name, found[name], order)
                    found[name].calibrations.append(sum(times[found[name].calibration]) / 2)
                    report(min(time.monotonic() - start, seconds), seconds)
                blocks, done = blocks + 1, done + 1
    return found


@contextmanager
def _sides(trees: Mapping[str, Path], order: Sequence[str]) -> Iterator[dict[str, Side]]:
    with ExitStack() as stack:
        sides = {name: stack.enter_context(Side(name, trees[name])) for name in order}
        for side in sides.values():
            side.ready()
        yield sides


def _prepared(sides: Mapping[str, Side], found: Mapping[str, Measured], tick: Any) -> Iterator[str]:
    """Prepare all benchmarks on both sides; yield those that both can run."""
    for name, measured in found.items():
        answers = {which: side.ask("case", name) for which, side in sides.items()}
        tick()
        for side, answer in answers.items():
            measured.nbytes[side] = answer.get("nbytes")
            if "problem" in answer:
                measured.problems[side] = answer["problem"]
        if not measured.problems:
            kind, amount = answers["change"]["calibration"]
            measured.calibration = (kind, amount)
            measured.repeats = _repeats(answers["change"]["seconds"])
            yield name


def _calibrated(sides: Mapping[str, Side], found: Sequence[Measured]) -> dict[tuple[str, int], int]:
    """Prepare the calibrations; return how often each is repeated in a turn."""
    repeats = {}
    for key in dict.fromkeys(measured.calibration for measured in found):
        kind, amount = key
        answers = [side.ask("calibration", f"{kind} {amount}", kind, amount) for side in sides.values()]
        for answer in answers:
            if "problem" in answer:
                raise GateError(f"the calibration {kind} cannot be run: {answer['problem']}")
        repeats[key] = _repeats(answers[0]["seconds"])
    return repeats


def _repeats(seconds: float) -> int:
    return max(1, math.ceil(TURN_SECONDS / max(seconds, 1e-7)))


def _block(sides: Mapping[str, Side], name: str, measured: Measured, order: Sequence[str]) -> None:
    """Four turns, A B B A: whatever grows steadily meanwhile cancels."""
    for side in (*order, *order[::-1]):
        answer = sides[side].ask("turn", name, measured.repeats)
        if "problem" in answer:
            raise GateError(f"{name} broke off at the {side}: {answer['problem']}")
        for clock, seconds in measured.turns[side].items():
            seconds.append(answer[clock] / measured.repeats)


def _turn(side: Side, name: str, repeats: int) -> float:
    return float(side.ask("turn", name, repeats)["cpu"]) / repeats
