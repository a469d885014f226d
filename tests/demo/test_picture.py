"""The demo's picture: nothing is cut off, and no label hides another."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.text import Text

from secagg.demo.picture import draw, write_picture
from secagg.demo.report import RoundResult


def rounds(dice: list[float], nbytes: float, *seconds: float) -> list[RoundResult]:
    return [RoundResult(number, value, nbytes, *seconds) for number, value in enumerate(dice)]


RAW = rounds([0.77, 0.88, 0.92, 0.928], 433e3, 4.2, 0.0, 0.006, 0.001, 0.0)
CASES = {
    "equal": (rounds([0.77, 0.88, 0.92, 0.928], 2768e3, 5.0, 0.11, 0.056, 0.01, 0.058), RAW),
    "smaller, better": (rounds([0.78, 0.9, 0.93, 0.94], 232e3, 4.9, 0.007, 0.02, 0.003, 0.003), RAW),
    "worse": (rounds([0.5, 0.6, 0.5, 0.4], 117e6, 120.0, 3.6, 2.0, 0.9, 1.4), RAW),
    "one round": (rounds([0.77], 2768e3, 5.0, 0.11, 0.056, 0.01, 0.058), RAW[:1]),
    "long": (rounds([n / 100 for n in range(90)], 2768e3, 5.0, 0.11, 0.056, 0.01, 0.058), RAW[:1] * 90),
}


@pytest.mark.parametrize(("encrypted", "raw"), CASES.values(), ids=CASES)
def test_all_text_can_be_read(encrypted: list[RoundResult], raw: list[RoundResult]) -> None:
    figure = draw({"encrypted": encrypted, "raw": raw})
    figure.canvas.draw()
    hidden = set()  # ticks beyond the limits, which are not drawn
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            hidden |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text() and text not in hidden]
    shown = {text.get_text() for text in texts}
    assert {
        f"encrypted\n{encrypted[-1].dice:.4f}",
        f"raw\n{raw[-1].dice:.4f}",
        "raw: none",
        "train",
        "0.433 MB",
    } <= shown
    boxes = {text: text.get_window_extent() for text in texts}
    for text, box in boxes.items():
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1, text
    for one, other in combinations(texts, 2):
        assert not boxes[one].shrunk(0.9, 0.8).overlaps(boxes[other].shrunk(0.9, 0.8)), (one, other)


def test_both_sides_share_a_scale_that_shows_differences() -> None:
    curves, sizes, seconds = draw({"encrypted": CASES["equal"][0], "raw": RAW}).axes
    low, high = curves.get_ylim()
    assert 0.6 < low < 0.77
    assert 0.928 < high < 1
    assert sizes.get_ylim()[0] == 0
    assert seconds.get_xscale() == "log"


def test_the_file(tmp_path: Path) -> None:
    write_picture(tmp_path / "p.png", {"encrypted": CASES["equal"][0], "raw": RAW})
    data = (tmp_path / "p.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(data) < 100_000
