"""The lines of a bench for people: tables, the largest distance in words, and one page that holds both."""

import html
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from cascades.runs import html_page

Line = dict[str, Any]
Cells = list[list[str]]

_NOTES = {
    "passes": "Bytes are the least that can be read: the weights once, and what the cache holds. GB/s, the share of "
    "the memory's, and products are of the fastest repeat. Products are the same matrix products with nothing between "
    "them, which need not wait for each other.",
    "choices": "Milliseconds that rules and sampling take beside the models, in parts of the verifier's pass over one "
    "token.",
    "rounds": "A round of k drafts beside the sum of its parts: k drafter passes and draws, the verifier's pass that "
    "holds them, the rule's judgement.",
    "answers": "Seconds of prefill; tokens a second behind it; their speed against the verifier "
    "alone on the same prompts, with the slowest and the fastest repeat; how many texts are the verifier's own.",
}


def show(lines: Sequence[Line], out: Console) -> None:
    """Prints the tables and what explains them; 80 columns wide at most."""
    out.print(machine(lines), highlight=False, soft_wrap=True)
    for name, (head, rows) in tables(lines).items():
        drawn = Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for number, column in enumerate(head):
            drawn.add_column(column, justify="right" if number else "left", no_wrap=True)
        for row in rows:
            drawn.add_row(*row)
        out.print(drawn)
        out.print(_NOTES[name], style="dim", highlight=False)
    for sentence in explained(lines):
        out.print(sentence, highlight=False)


def machine(lines: Sequence[Line]) -> str:
    """Returns what ran where, in one line."""
    line = lines[0]
    return (
        f"{line['drafter']} -> {line['verifier']}, {line['dtype']}, {line['batch']} x {line['slots']} slots; "
        f"{line['processor']}, {line['cores']} cores, {line['device']}, jax {line['jax']}; medians of {line['repeats']}"
    )


def tables(lines: Sequence[Line]) -> dict[str, tuple[list[str], Cells]]:
    """Returns, by their names in `_NOTES`, the head of each table and its rows."""
    products = {line["name"]: line["low"] for line in _of(lines, "products")}
    passes = [
        [
            line["name"],
            *_times(line),
            _short(line["bytes"] / 1e6),
            f"{line['gb_per_s']:.1f}",
            f"{line['of_memory']:.0%}",
            _ms(products[line["name"]]) if line["name"] in products else "",
        ]
        for line in _of(lines, "memory", "pass")
    ]
    unit = next(line["seconds"] for line in _of(lines, "pass"))
    choices = [[line["name"], *_times(line), f"{line['seconds'] / unit:.1%}"] for line in _of(lines, "choice")]
    rounds = [
        [line["name"], *_times(line), _ms(line["parts"]), f"{line['seconds'] / line['parts'] - 1:+.1%}"]
        for line in _of(lines, "round")
    ]
    answers = [
        [
            line["name"],
            f"{line['prefill_s']:.2f}",
            f"{line['tokens_per_s']:.1f}",
            f"{line['speed']:.2f}x",
            f"{line['speed_low']:.2f}–{line['speed_high']:.2f}",
            f"{line['tokens_per_call']:.2f}" if line["tokens_per_call"] else "",
            f"{line['same_text']}/{line['prompts']}",
        ]
        for line in _of(lines, "generation")
    ]
    timed = ["ms", "low–high"]
    return {
        "passes": (["", *timed, "MB", "GB/s", "share", "products"], passes),
        "choices": (["", *timed, "of a pass"], choices),
        "rounds": (["round", *timed, "parts", "loop"], rounds),
        "answers": (["answers", "prefill", "tok/s", "speed", "low–high", "tok/call", "same"], answers),
    }


def explained(lines: Sequence[Line]) -> list[str]:
    """Returns sentences on the pass that is farthest from the memory's speed, and where its time goes."""
    memory, *_ = (line for line in _of(lines, "memory") if line["name"] == "memory, read")
    near = next((line for line in _of(lines, "memory") if line["name"].startswith("verifier's size")), memory)
    sentences = []
    if near["gb_per_s"] > 1.2 * memory["gb_per_s"]:
        sentences.append(
            f"As many bytes as the verifier has are read at {near['gb_per_s']:.1f} GB/s, from memory at "
            f"{memory['gb_per_s']:.1f}: a cache holds part of them, and of the verifier."
        )
    far = min(_of(lines, "pass"), key=lambda line: line["of_memory"])
    if far["of_memory"] >= 1:
        return [
            *sentences,
            f"No pass is slower than reading its bytes from memory; the nearest is {far['name']}, at "
            f"{far['of_memory']:.0%} of that speed: a cache holds part of its weights.",
        ]
    seconds = far["low"]
    read = far["of_memory"] * seconds
    (product,) = (line["low"] for line in _of(lines, "products") if line["name"] == far["name"])
    multiplied, between = max(min(product, seconds) - read, 0.0), max(seconds - max(product, read), 0.0)
    cause = "multiplying takes longer than reading" if multiplied > between else "what stands between the products"
    sentences.append(
        f"The largest distance: {far['name']}, {_ms(seconds)} ms at {far['of_memory']:.0%} of the memory's speed, "
        f"which would read its {far['bytes'] / 1e6:.1f} MB in {_ms(read)} ms. Most of it: {cause}. Its matrix products "
        f"alone take {_ms(product)} ms, {_ms(multiplied)} ms more than reading; attention, norms, the cache and the "
        f"start of every operation take the other {_ms(between)} ms."
    )
    return sentences


def page(lines: Sequence[Line]) -> str:
    """Returns one HTML page that needs no other file: the machine, tables, bars, the explanation."""
    titles = {"passes": "Memory and passes", "choices": "Choices", "rounds": "Rounds", "answers": "Whole answers"}
    shares = [line["of_memory"] for line in _of(lines, "memory", "pass")]
    sections = []
    for name, (head, rows) in tables(lines).items():
        bars = shares if name == "passes" else None
        sections.append(f"<h2>{titles[name]}</h2>\n<p>{html.escape(_NOTES[name])}</p>\n{_drawn(head, rows, bars)}")
        if bars:
            sections += [f"<p><b>{html.escape(sentence)}</b></p>" for sentence in explained(lines)]
    title = f"{lines[0]['drafter']} → {lines[0]['verifier']} on {lines[0]['processor']}"
    return html_page.page(title, [machine(lines)], "\n".join(sections))


def _drawn(head: list[str], rows: Cells, shares: list[float] | None) -> str:
    """A table in HTML; a bar behind each row shows its share of the memory's speed."""
    head = [*head, "0 – 100%"] if shares else head
    body = []
    for number, row in enumerate(rows):
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        if shares:
            width = 100 * min(shares[number], 1.0)
            cells += f'<td class="bar"><div style="width: {width:.1f}%"></div></td>'
        body.append(cells)
    return html_page.table([f"<th>{html.escape(column)}</th>" for column in head], body)


def _of(lines: Sequence[Line], *kinds: str) -> list[Line]:
    return [line for line in lines if line["kind"] in kinds]


def _times(line: Line) -> tuple[str, str]:
    return _ms(line["seconds"]), f"{_ms(line['low'])}–{_ms(line['high'])}"


def _ms(seconds: float) -> str:
    return _short(1e3 * seconds)


def _short(value: float) -> str:
    """Three figures, or all of those before the point."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
