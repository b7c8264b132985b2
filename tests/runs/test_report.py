"""The table, the plot and the page of a sweep."""

import base64
import csv
import html.parser
import importlib.util
import io
import math
import re

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from cascades.errors import UserError
from cascades.evaluation.summary import VERIFIER, Row
from cascades.runs import report

ALONE = Row(VERIFIER, None, None, 20, 1.0, 1.0, 1.0, 1.0, 1.0, None, None, None, 51.2, 101.5, -0.412, None)
LOSSLESS = ALONE._replace(rule="lossless", relative_time=0.8, low=0.7, high=0.9, speed=1.25, block_efficiency=1.5)
V3 = [
    LOSSLESS._replace(rule="token_v3", alpha=alpha, acceptance=0.5, relative_time=1 / speed, speed=speed)
    for alpha, speed in ((0.0, 1.5), (0.5, 2.0), (math.inf, 3.0))
]
ROWS = [ALONE, LOSSLESS, *V3]
SCORED = [row._replace(score=0.5) for row in ROWS]


def test_the_table_fits_a_terminal():
    def drawn(rows):
        file = io.StringIO()
        Console(file=file, width=80).print(report.table(rows))
        return file.getvalue()

    text = drawn(ROWS)
    assert "…" not in text and "score" not in text and "verifier " in text
    assert [line.split()[:3] for line in text.splitlines() if "token_v3" in line] == [
        ["token_v3", "0", "1.50x"],
        ["token_v3", "0.5", "2.00x"],
        ["token_v3", "inf", "3.00x"],
    ]
    assert "0.500" in drawn(SCORED) and "…" not in drawn(SCORED)


def test_the_csv_holds_every_field(tmp_path):
    report.write_csv(tmp_path / "sweep.csv", ROWS)
    with open(tmp_path / "sweep.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert len(read) == 5 and set(read[0]) == set(Row._fields)
    assert read[0]["alpha"] == "" and float(read[1]["relative_time"]) == 0.8 and read[4]["alpha"] == "inf"


def test_the_plot_has_a_line_per_rule():
    speed, efficiency = report.plot(ROWS).axes
    lines = {line.get_label(): line for line in speed.lines}
    assert list(lines["token_v3"].get_xdata()) == [0.0, 0.5] and list(lines["token_v3"].get_ydata()) == [1.5, 2.0]
    assert list(lines["lossless"].get_ydata()) == [1.25, 1.25] and VERIFIER not in lines
    assert list({line.get_label(): line for line in efficiency.lines}["token_v3"].get_ydata()) == [1.5, 1.5]
    [bars] = speed.containers
    assert len(bars.lines[2][0].get_segments()) == 2


GUIDED = [ALONE, *(row._replace(lookahead=name) for name in ("guided", "drafter_confidence(0.4)") for row in ROWS[1:3])]


def test_controllers_are_told_apart_where_there_are_several():
    file = io.StringIO()
    Console(file=file, width=80).print(report.table(GUIDED))
    assert "…" not in file.getvalue() and file.getvalue().count("drafter_confidence(0.4)") == 2
    assert "lookahead" not in report.columns(GUIDED[:3]) and "lookahead" in report.columns(GUIDED)
    speed, efficiency = report.plot(GUIDED).axes
    assert [tick.get_text() for tick in speed.get_yticklabels()] == ["guided", "drafter_confidence(0.4)"]
    assert sorted(bar.get_width() for bar in speed.patches) == [1.25, 1.25, 1.5, 1.5]
    assert len(efficiency.patches) == 4


def test_scores_get_a_panel():
    *_, quality = report.plot(SCORED).axes
    lines = {line.get_label(): line for line in quality.lines}
    assert list(lines["token_v3"].get_xdata()) == [1 / 3, 0.5, 1 / 1.5]  # in the order of time
    assert len(report.plot(SCORED).axes) == 3


def test_a_plot_of_nothing_relative_is_drawn():
    assert report.png(report.plot([V3[0]._replace(relative_time=None, speed=None, low=None, high=None)]))


def test_a_small_picture_keeps_the_colour_of_a_lone_marker_and_of_a_wide_band():
    figure = Figure(figsize=(6, 4))
    axis = figure.subplots()
    axis.axhspan(0, 4, color="0.9", zorder=0)
    for number in range(10):
        many = 1 if number in (1, 3) else 40  # lossless decoding and the drafter alone are a point each
        axis.plot(range(many), number + np.sin(np.arange(many)), "o-", color=f"C{number}", markersize=5)
        axis.vlines(range(many), 0, number, color=f"C{number}", alpha=0.5, linewidth=0.6)
    whole, small = report.png(figure, dpi=90), report.png(figure, dpi=90, small=True)
    assert len(small) < 0.5 * len(whole)
    before, after = (np.asarray(Image.open(io.BytesIO(each)).convert("RGB")).astype(int) for each in (whole, small))
    for name in ("0.9", *(f"C{number}" for number in range(10))):
        color = np.rint(255 * np.array(to_rgb(name)))
        there = (before == color).all(axis=-1)
        assert there.any() and abs(after[there] - color).max() <= 4  # of 255: nobody sees it


def test_the_page_needs_no_other_file():
    image = report.png(report.plot(ROWS))
    text = report.page([*ROWS, ALONE._replace(rule="<mine>")], image, "a & b", ["first note", "second <note>"])
    embedded = re.search(r'src="data:image/png;base64,([^"]+)"', text)
    assert embedded and base64.b64decode(embedded[1]) == image and image.startswith(b"\x89PNG")
    assert not re.search(r'(src|href)="(?!data:)', text) and "http" not in text
    assert text.count("<tr>") == 7 and "&lt;mine&gt;" in text and "a &amp; b" in text and "second &lt;note&gt;" in text

    open_tags = []

    class Balanced(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img"):
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Balanced().feed(text)
    assert open_tags == []


def test_a_missing_matplotlib_is_told(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=re.escape("pip install -e '.[eval]'")):
        report.plot(ROWS)
