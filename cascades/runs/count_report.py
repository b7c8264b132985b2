"""The outcome of count runs: tables with intervals, pictures of quality against cost, and one page with answers."""

import base64
import csv
import html
import itertools
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from cascades.decoding import Origin
from cascades.evaluation.counts import LEVEL, CountRow, Figure
from cascades.evaluation.matched import Cost, front, matched
from cascades.evaluation.summary import VERIFIER
from cascades.evaluation.tasks.contract import Task
from cascades.runs import html_page, report, terminal
from cascades.runs.display import LOOKS, mark
from cascades.runs.terminal import MEANINGS

_OWN = {
    "rejection": ("rej", "{:.0%}", "rejected per decided draft position"),
    "length": ("len", "{:.2f}", "tokens of all answers, relative to the verifier's alone"),
}
_SHOWN = "block_efficiency", "acceptance", "rejection", "deferral", "length", "log_p"
_FIGURES = {name: (report.COLUMNS | _OWN)[name] for name in _SHOWN}
_MARK = ' class="best"'


class Axis(NamedTuple):
    """What quality is drawn against: less is better, or more where `more`."""

    title: str
    figure: Cost
    more: bool = False

    def cost(self, row: CountRow) -> Figure:
        """The figure, of which less is better."""
        figure = self.figure(row)
        return figure._replace(value=-figure.value) if self.more else figure


def tell(
    rows: Sequence[CountRow],
    lines: Sequence[dict[str, Any]],
    tasks: Sequence[Task],
    folder: pathlib.Path,
    title: str,
    about: dict[str, Any],
    err: Console,
) -> None:
    """Prints the tables, and writes `counts.csv`, pictures and `counts.html`. Nothing where there are no rows.

    Args:
      lines: which hold answers whose tokens are coloured by origin. about: what the lines share.
    """
    out, _ = terminal.consoles()
    parts, images, files = [], [], ["results.jsonl"]
    for task in tasks:
        for temperature in dict.fromkeys(row.temperature for row in rows if row.task == task.name):
            part = [row for row in rows if (row.task, row.temperature) == (task.name, temperature)]
            heading = f"{task.name or 'prompts'} at temperature {temperature:g}, {part[0].examples} examples"
            out.print(f"\n{heading}", style="bold", highlight=False)
            out.print(table(part, task))
            name = f"counts.{task.name or 'prompts'}.{temperature:g}"
            figure = plot(part, task)
            image = report.png(figure)
            (folder / f"{name}.png").write_bytes(image)
            figure.savefig(folder / f"{name}.svg", format="svg")
            files += [f"{name}.png", f"{name}.svg"]
            images.append(image)
            parts.append(_section(heading, part, task, image))
    if not parts:
        return
    write_csv(folder / "counts.csv", rows)
    body = "\n".join(parts) + _answers(lines, tasks) + _meanings(rows, tasks)
    (folder / "counts.html").write_text(html_page.page(title, _notes(about), body), encoding="utf-8")
    err.print(f"written: {folder}/{', '.join([*files, 'counts.csv', 'counts.html'])}", highlight=False, soft_wrap=True)


def axes_of(rows: Sequence[CountRow]) -> list[Axis]:
    """Returns what quality is drawn against: computed times first, then what was counted."""
    times = [
        Axis(f"time on {name}, verifier alone = 1 (computed)", lambda row, name=name: row.times[name])
        for name in (rows[0].times if rows else ())
    ]
    return [
        *times,
        Axis("tokens per verifier call", lambda row: row.block_efficiency, more=True),
        Axis("rejected per decided position", lambda row: row.rejection),
        Axis("deferred per decided position", lambda row: row.deferral),
    ]


def plot(rows: Sequence[CountRow], task: Task, axes: Sequence[Axis] | None = None):
    """Draws the first metric of a task against each of `axes`, with intervals and the front that no point beats.

    Without a metric, the verifier's log-probability of a token stands in its place.

    Args:
      axes: of `axes_of`, which are all drawn by default.

    Returns:
      A matplotlib figure.
    """
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    title, quality = _quality(task)
    axes = axes_of(rows) if axes is None else axes
    columns = min(len(axes), 3)
    height = -(-len(axes) // columns)
    canvas = Canvas(figsize=(5.0 * columns, 4.0 * height + 0.6), layout="constrained")
    plots = canvas.subplots(height, columns, squeeze=False).ravel()
    names = [name for name in dict.fromkeys(row.rule for row in rows) if name != VERIFIER]
    for axis, drawn in zip(axes, plots, strict=False):
        for number, name in enumerate(names):
            of_it = [row for row in rows if row.rule == name and _known(axis.figure(row)) and _known(quality(row))]
            look = {"color": f"C{number % 10}", "label": name, "marker": "osD^vP*Xd<"[(number // 10) % 10]}
            _curve(drawn, [axis.figure(row) for row in of_it], [quality(row) for row in of_it], look)
        for row in (row for row in rows if row.rule == VERIFIER):
            at, value = axis.figure(row), quality(row)
            if _known(value):
                drawn.axhspan(value.low, value.high, color="0.9", zorder=0)
                drawn.axhline(value.value, color="0.5", linestyle=":")
            if _known(at) and _known(value):
                drawn.plot(at.value, value.value, "*", color="0.2", markersize=11, label="verifier alone")
        best = front(rows, quality, axis.cost)
        ends = [axis.figure(row).value for row in best], [quality(row).value for row in best]
        drawn.plot(*ends, color="0.6", linewidth=5, alpha=0.35, zorder=0, label="no other is better in both")
        drawn.set(xlabel=axis.title, ylabel=title)
        if axis.more:  # a cascade that seldom asks the verifier has many a call, and would squeeze all others
            drawn.set_xscale("log")
            drawn.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            drawn.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            drawn.xaxis.set_minor_formatter(NullFormatter())
        drawn.grid(alpha=0.25)
        drawn.spines[["top", "right"]].set_visible(False)
    for spare in plots[len(axes) :]:
        spare.set_visible(False)
    handles = {label: handle for each in plots for handle, label in zip(*each.get_legend_handles_labels(), strict=True)}
    canvas.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=6, frameon=False)
    return canvas


def write_csv(path: pathlib.Path, rows: Sequence[CountRow]) -> None:
    """Writes every figure with its interval, unrounded."""
    table = []
    for row in rows:
        cells: dict[str, Any] = {
            name: value for name, value in row._asdict().items() if not isinstance(value, Figure | dict)
        }
        for name, figure in _all(row).items():
            cells |= {name: figure.value, f"{name} low": figure.low, f"{name} high": figure.high}
        table.append(cells)
    names = list(dict.fromkeys(name for cells in table for name in cells))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(table)


def _all(row: CountRow) -> dict[str, Figure]:
    named = {name: value for name, value in row._asdict().items() if isinstance(value, Figure)}
    for what, values in (("", row.metrics), ("difference of ", row.differences), ("time on ", row.times)):
        named |= {f"{what}{name}": figure for name, figure in values.items()}
    return named


def _quality(task: Task) -> tuple[str, Callable[[CountRow], Figure]]:
    if not task.metrics:
        return "log p of a token", lambda row: row.log_p
    name = task.metrics[0].name
    return name, lambda row: row.metrics[name]


def _curve(drawn: Any, at: Sequence[Figure], value: Sequence[Figure], look: dict[str, Any]) -> None:
    if not at:
        return
    spread = [[(figure.value - figure.low, figure.high - figure.value) for figure in each] for each in (at, value)]
    horizontal, vertical = (
        [[max(side, 0.0) for side in sides] for sides in zip(*each, strict=True)] for each in spread
    )
    xs, ys = [figure.value for figure in at], [figure.value for figure in value]
    drawn.errorbar(xs, ys, vertical, horizontal, fmt="none", ecolor=look["color"], elinewidth=0.6, alpha=0.5)
    drawn.plot(xs, ys, markersize=4, linewidth=1.2 if len(xs) > 1 else 0, **look)


def _known(figure: Figure) -> bool:
    return math.isfinite(figure.value)


def _head(rows: Sequence[CountRow]) -> list[str]:
    times = (f"time, {name}" for name in rows[0].times)
    return _headings("rule", *rows[0].metrics, *times, *(title for title, _, _ in _FIGURES.values()))


def _headings(*titles: str) -> list[str]:
    return [f"<th>{html.escape(title.replace('->', '→'))}</th>" for title in titles]  # which no line is broken within


def _several(rows: Sequence[CountRow]) -> bool:
    """Whether they compare draft-length controllers."""
    return len({row.lookahead for row in rows if row.lookahead}) > 1


def _cells(row: CountRow, several: bool, best: bool) -> str:
    """The cells of a row: its name and threshold, which stay where the rest scrolls, and figures with intervals.

    several: whether there are several controllers. best: whether the row is on the front.
    """
    told = [("{:#.3g}", figure) for figure in row.metrics.values()]
    told += [("{:.2f}", figure) for figure in row.times.values()]
    told += [(form, getattr(row, name)) for name, (_, form, _) in _FIGURES.items()]
    lookahead = f"<small>{html.escape(row.lookahead)}</small>" if several else ""
    alpha = "" if row.alpha is None else _minus(_alpha(row))
    name = f"{html.escape(_name(row))} <span>{alpha}</span>"
    return f'<td{_MARK * best}><div class="point">{name}</div>{lookahead}</td>' + "".join(
        f"<td>{_interval(figure, form)}</td>" for form, figure in told
    )


def _interval(figure: Figure, form: str) -> str:
    """A figure with its interval beneath, where it has one and that has a width."""
    value, low, high = (form.format(each).rstrip(".") for each in figure)
    ends = f"<small>{low} – {high}</small>" if math.isfinite(figure.low) and low != high else ""
    return _minus(value + ends) if _known(figure) else "–"


def _minus(number: str) -> str:
    return number.replace("-", "−")


def _name(row: CountRow) -> str:
    return "verifier" if row.rule == VERIFIER else row.rule


def _alpha(row: CountRow) -> str:
    return "–" if row.alpha is None else f"{row.alpha:g}"


def _told(figure: Figure, form: str) -> str:
    return form.format(figure.value) if _known(figure) else "–"


def table(rows: Sequence[CountRow], task: Task) -> Table:
    """Returns the table for a terminal, 80 columns wide: the first metric with its interval, and the first time."""
    title, quality = _quality(task)
    time = next(iter(rows[0].times), None)
    several = _several(rows)
    columns: dict[str, Callable[[CountRow], str]] = {"rule": lambda row: _name(row)}
    if several:
        columns["lookahead"] = lambda row: row.lookahead or "–"
    columns |= {
        "alpha": _alpha,
        "score": lambda row: _told(quality(row), "{:.3g}"),
        "from – to": lambda row: f"{quality(row).low:.3g} – {quality(row).high:.3g}",
    }
    if time is not None:
        columns["time"] = lambda row: _told(row.times[time], "{:.2f}x")
    columns |= {
        heading: lambda row, name=name, form=form: _told(getattr(row, name), form)
        for name, (heading, form, _) in _FIGURES.items()
        if name not in ("rejection", "log_p")
    }
    caption = f"score: {title}, its interval beside it" + (f"; time: computed for {time}" if time else "")
    drawn = Table(
        header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=caption, caption_justify="left"
    )
    for heading in columns:
        drawn.add_column(heading, justify="left" if heading in ("rule", "lookahead") else "right", no_wrap=True)
    for before, row in zip([None, *rows], rows, strict=False):
        if before is not None and before.rule != row.rule:
            drawn.add_section()
        drawn.add_row(*(told(row) for told in columns.values()))
    return drawn


def _section(heading: str, rows: Sequence[CountRow], task: Task, image: bytes) -> str:
    axis, (name, quality) = axes_of(rows)[0], _quality(task)
    best, several = front(rows, quality, axis.cost), _several(rows)
    groups = [
        [_cells(row, several, row in best) for row in of_rule]
        for _, of_rule in itertools.groupby(rows, key=lambda row: row.rule)
    ]
    picture = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    return (
        f"<h2>{html.escape(heading)}</h2>\n<p>{html.escape(task.source)}</p>\n"
        f'<img alt="{html.escape(heading)}: quality against cost, by rule" src="{picture}">\n'
        f"{html_page.table(_head(rows), *groups)}\n"
        f"<p>Green: no other row is better in both {html.escape(name)} and {html.escape(axis.title)}.</p>\n"
        f"{matched_table(rows, task)}"
    )


def matched_table(rows: Sequence[CountRow], task: Task) -> str:
    """Returns what each rule is worth at the verifier's quality, and at lossless decoding's pace, as HTML.

    The best of each is in bold. Nothing where there is no metric. Costs are the first of `axes_of`.
    """
    if not task.metrics:
        return ""
    axis, (name, quality) = axes_of(rows)[0], _quality(task)
    lines = matched(rows, name, axis.cost)
    if not lines:
        return ""
    cheapest = min((axis.cost(line.quality).value for line in lines if line.quality), default=None)
    highest = max((quality(line.pace).value for line in lines if line.pace), default=None)

    def cells(row: CountRow | None, best: bool, *figures: tuple[Callable[[CountRow], Figure], str]) -> str:
        if row is None:
            return "<td>–</td>" * 3
        first, second = (_interval(figure(row), form) for figure, form in figures)
        return f"<td>{_minus(_alpha(row))}</td><td{_MARK * best}>{first}</td><td>{second}</td>"

    cost, score = (axis.figure, "{:.2f}"), (quality, "{:#.3g}")
    body = []
    for line in lines:
        first = line.quality is not None and axis.cost(line.quality).value == cheapest
        second = line.pace is not None and quality(line.pace).value == highest
        lookahead = f"<small>{html.escape(line.lookahead)}</small>" if _several(rows) else ""
        told = f"<td>{html.escape(line.rule)}{lookahead}</td>"
        body.append(told + cells(line.quality, first, cost, score) + cells(line.pace, second, score, cost))
    above = [f"The cheapest at the verifier's {name}", f"The best {name} at lossless decoding's pace"]
    what = next((f"time, {machine}" for machine in rows[0].times), _FIGURES["block_efficiency"][0])
    drawn = html_page.table(
        _headings("rule", "alpha", what, name, "alpha", name, what),
        body,
        above=["<th></th>", *(f'<th colspan="3">{html.escape(each)}</th>' for each in above)],
    )
    return f"<h3>At the verifier's {html.escape(name)}, and at lossless decoding's pace</h3>\n{drawn}"


def _answers(lines: Sequence[dict[str, Any]], tasks: Sequence[Task]) -> str:
    """A few answers, their tokens coloured by origin, beside the verifier's own."""
    parts = []
    for task in tasks:
        shown: dict[tuple, list[dict]] = {}
        for line in lines:
            if line["task"] == task.name and line.get("pieces"):
                shown.setdefault((line["temperature"], line["prompt_id"]), []).append(line)
        for (temperature, prompt), each in shown.items():
            own = [line for line in each if line["rule"] == VERIFIER]
            others = [line for line in each if line["rule"] != VERIFIER]
            cells = "".join(_answer(line) for line in (*own, *others))
            parts.append(
                f"<details><summary>{html.escape(prompt)} at temperature {temperature:g}</summary>"
                f'<div class="answers">{cells}</div></details>'
            )
    if not parts:
        return ""
    legend = " · ".join(mark(origin, MEANINGS[origin]) for origin in LOOKS)
    return f"<h2>Answers</h2>\n<p>{legend}</p>\n" + "\n".join(parts)


def _answer(line: dict[str, Any]) -> str:
    alpha = "" if line["alpha"] is None else f" {line['alpha']:g}"
    text = "".join(mark(Origin(origin), piece) for piece, origin in line["pieces"])
    return f"<figure><figcaption>{html.escape(line['rule'])}{alpha}</figcaption><pre>{text}</pre></figure>"


def _meanings(rows: Sequence[CountRow], tasks: Sequence[Task]) -> str:
    told = {title: meaning for title, _, meaning in _FIGURES.values()}
    told |= {
        f"time, {name}": "of a task on that machine, computed from what was counted here" for name in rows[0].times
    }
    told |= {metric.name: metric.definition for task in tasks for metric in task.metrics}
    items = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(meaning)}</dd>" for name, meaning in told.items())
    return f"<h2>Columns</h2>\n<dl>{items}</dl>"


def _notes(about: dict[str, Any]) -> list[str]:
    platform, kind, count = about["device"]
    return [
        f"Count runs: nothing was timed. Drafts of at most {about['k_max']}; {about['dtype']} on {count} x {platform} "
        f"({kind}). Intervals are of {LEVEL:.0%}, by a bootstrap over examples, the same ones for every point.",
        "Quality, acceptance, deferral and calls are measured here. Times are computed: counts times the cost of each "
        "pass on the machine that is named, without prefill.",
    ]
