"""The outcome of a sweep for people: a table, a plot, and one page that holds both."""

import base64
import csv
import html
import importlib.util
import io
import math
import pathlib
from collections.abc import Sequence

from rich import box
from rich.table import Table

from cascades.errors import UserError
from cascades.evaluation.summary import VERIFIER, Row
from cascades.runs import html_page

# Title of a column, its form, and what it means; shared with `count_report`, which has columns of its own too.
COLUMNS = {
    "rule": ("rule", "{}", "what keeps or defers a token; the verifier alone decodes without a drafter"),
    "lookahead": ("lookahead", "{}", "what chooses how many tokens are drafted next"),
    "alpha": ("alpha", "{:g}", "the rule's threshold"),
    "relative_time": ("time", "{:.2f}x", "total time against the verifier alone on the same prompts, less is faster"),
    "speed": ("speed", "{:.2f}x", "its inverse"),
    "block_efficiency": ("tok/call", "{:.2f}", "tokens per verifier call: the block efficiency, 1 for the verifier"),
    "acceptance": ("acc", "{:.0%}", "accepted of drafted tokens"),
    "deferral": ("defer", "{:.0%}", "the rule's share for the verifier, per decided draft position"),
    "tokens_per_s": ("tok/s", "{:.1f}", "of a whole batch, prefill included, compiling not"),
    "tokens": ("len", "{:.0f}", "tokens of an answer; a rule that lets answers grow pays for it in time"),
    "log_p": ("log p", "{:.3f}", "the verifier's log-probability of a token, mean, in nats, at temperature 1"),
    "score": ("score", "{:.3f}", "mean of the task's score"),
}


def need_matplotlib() -> None:
    """Raises a UserError unless matplotlib is there: better before a long run than behind it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("a plot needs matplotlib, which is not installed: pip install -e '.[eval]'")


def cells(row: Row) -> dict[str, str]:
    """Returns what stands in each column; a column that nothing fills is left out by `columns`."""
    if row.rule == VERIFIER:
        row = row._replace(rule="verifier")
    return {
        name: "–" if (value := getattr(row, name)) is None else form.format(value)
        for name, (_, form, _) in COLUMNS.items()
    }


def columns(rows: Sequence[Row]) -> list[str]:
    """Returns the columns that these rows fill: `score` where there is one, `lookahead` where there are several."""
    empty = {
        "score": all(row.score is None for row in rows),
        "lookahead": len({row.lookahead for row in rows if row.lookahead}) < 2,
    }
    return [name for name in COLUMNS if not empty.get(name)]


def table(rows: Sequence[Row]) -> Table:
    """Returns the table for a terminal, 80 columns wide at most: without the time, which is the inverse of the speed.

    Where controllers are compared, an answer's length and likelihood make way for their names.
    """
    wide = "lookahead" in columns(rows)
    shown = [name for name in columns(rows) if name not in ("relative_time", *(("tokens", "log_p") if wide else ()))]
    drawn = Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in shown:
        left = name in ("rule", "lookahead")
        drawn.add_column(COLUMNS[name][0], justify="left" if left else "right", no_wrap=True)
    for before, row in zip([None, *rows], rows, strict=False):
        if before is not None and before.rule != row.rule:
            drawn.add_section()
        drawn.add_row(*(cells(row)[name] for name in shown))
    return drawn


def write_csv(path: pathlib.Path, rows: Sequence[Row]) -> None:
    """Writes every field of the rows, unrounded."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        writer.writerows(rows)


def plot(rows: Sequence[Row]):
    """Draws relative speed and block efficiency against the threshold, and where there are scores, score against time.

    A rule without thresholds is a level line. Infinite thresholds stand in the table only. Where several draft-length
    controllers are compared, each has a bar per rule and threshold instead.

    Returns:
      A matplotlib figure, for `savefig` or a notebook.

    Raises:
      UserError: matplotlib is not installed.
    """
    need_matplotlib()
    from matplotlib.figure import Figure

    if "lookahead" in columns(rows):
        return _bars(rows)
    scored = any(row.score is not None for row in rows)
    figure = Figure(figsize=(5.2 * (2 + scored), 4.2), layout="constrained")
    axes = figure.subplots(1, 2 + scored)
    names = [name for name in dict.fromkeys(row.rule for row in rows) if name != VERIFIER]
    for number, name in enumerate(names):
        look = {"color": f"C{number % 10}", "label": name}
        of_rule = [row for row in rows if row.rule == name]
        _line(axes[0], of_rule, "speed", look)
        _line(axes[1], of_rule, "block_efficiency", look)
        if scored:
            known = sorted((r.relative_time, r.score) for r in of_rule if None not in (r.relative_time, r.score))
            axes[2].plot([time for time, _ in known], [s for _, s in known], marker="o", markersize=4, **look)
    for axis, title in zip(axes, ("speed, verifier alone = 1", "tokens per verifier call"), strict=False):
        axis.axhline(1.0, color="0.5", linestyle=":", label="verifier alone")
        axis.set(xlabel="threshold alpha", ylabel=title)
    if scored:
        alone = [row for row in rows if row.rule == VERIFIER and row.score is not None]
        star = axes[2].plot([1.0] * len(alone), [r.score for r in alone], "*", color="0.3", markersize=11)
        axes[2].legend(star, ["verifier alone"], frameon=False)
        axes[2].set(xlabel="time, verifier alone = 1", ylabel="score")
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=6, frameon=False)
    return figure


def _bars(rows: Sequence[Row]):
    """Speed and block efficiency of every draft-length controller, side by side for each rule and threshold."""
    from matplotlib.figure import Figure

    controlled = [row for row in rows if row.lookahead]
    controllers = list(dict.fromkeys(row.lookahead for row in controlled))
    kinds = list(dict.fromkeys((row.rule, row.alpha) for row in controlled))
    figure = Figure(figsize=(10.4, 1.6 + 0.2 * len(controllers) * (1 + len(kinds))), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    height = 0.8 / len(kinds)
    fields = {"speed": "speed, verifier alone = 1", "block_efficiency": "tokens per verifier call"}
    for axis, (field, title) in zip(axes, fields.items(), strict=True):
        for number, (rule, alpha) in enumerate(kinds):
            known = [row for row in controlled if (row.rule, row.alpha) == (rule, alpha)]
            known = [row for row in known if getattr(row, field) is not None]
            places = [controllers.index(row.lookahead) + (number + 0.5) * height - 0.4 for row in known]
            label = rule if alpha is None else f"{rule}, alpha {alpha:g}"
            axis.barh(places, [getattr(row, field) for row in known], 0.9 * height, color=f"C{number}", label=label)
        axis.axvline(1.0, color="0.5", linestyle=":", label="verifier alone")
        axis.set(xlabel=title)
        axis.grid(axis="x", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(controllers)), [str(name) for name in controllers])
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    return figure


def _line(axis, rows: Sequence[Row], field: str, look: dict) -> None:
    known = [row for row in rows if getattr(row, field) is not None]
    level = [row for row in known if row.alpha is None]
    line = [row for row in known if row.alpha is not None and math.isfinite(row.alpha)]
    for row in level:
        axis.axhline(getattr(row, field), linestyle="--", linewidth=1.2, **look)
    if not line:
        return
    values = [getattr(row, field) for row in line]
    axis.plot([row.alpha for row in line], values, marker="o", markersize=4, **look)
    if field == "speed" and any(row.low != row.high for row in line):
        # Single repeats, as far as they lie apart; of speed, the slowest is the low end.
        ends = [
            (max(value - 1 / row.high, 0.0), max(1 / row.low - value, 0.0)) if row.low and row.high else (0.0, 0.0)
            for row, value in zip(line, values, strict=True)
        ]
        spread = list(zip(*ends, strict=True))
        axis.errorbar([row.alpha for row in line], values, spread, fmt="none", color=look["color"], elinewidth=0.8)


def png(figure, dpi: int = 150, *, small: bool = False) -> bytes:
    """Returns the figure as a PNG file's bytes.

    Args:
      dpi: dots of an inch. small: with a palette of 256 colours, in a third of the bytes.
    """
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    if not small:
        return file.getvalue()
    from PIL import Image  # which comes with matplotlib

    less = io.BytesIO()
    # Not Pillow's usual way, by which the colour of a lone marker becomes that of a line elsewhere.
    palette = Image.open(file).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE)
    palette.save(less, "png", optimize=True)
    return less.getvalue()


def page(rows: Sequence[Row], image: bytes, title: str, notes: Sequence[str]) -> str:
    """Returns one HTML page that needs no other file.

    Args:
      rows: of the table. image: the plot as a PNG. notes: paragraphs of plain text under the title.
    """
    shown = columns(rows)
    head = [f'<th title="{html.escape(COLUMNS[name][2])}">{COLUMNS[name][0]}</th>' for name in shown]
    body = ["".join(f"<td>{html.escape(cells(row)[name])}</td>" for name in shown) for row in rows]
    meanings = "".join(f"<dt>{COLUMNS[name][0]}</dt><dd>{html.escape(COLUMNS[name][2])}</dd>" for name in shown)
    picture = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    return html_page.page(
        title,
        notes,
        f'<img alt="Speed and tokens per verifier call against the threshold, by rule" src="{picture}">\n'
        f"{html_page.table(head, body)}\n<h2>Columns</h2>\n<dl>{meanings}</dl>",
    )
