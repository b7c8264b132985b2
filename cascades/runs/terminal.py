"""What a person sees: text as it streams, coloured by origin on a terminal, and one table at the end."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence

from rich import box
from rich.color import ColorSystem
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.style import Style
from rich.table import Table

from cascades.decoding import Origin
from cascades.generation import Result
from cascades.generation.costs import knob

STYLES = {
    Origin.DRAFT: "green",
    Origin.RULE: "yellow",
    Origin.CORRECTION: "red",
    Origin.BONUS: "cyan",
    Origin.VERIFIER: "blue",
    Origin.DRAFTER: "green",
}
MEANINGS = {
    Origin.DRAFT: "draft",
    Origin.RULE: "draft, kept by the rule alone",
    Origin.CORRECTION: "verifier's correction",
    Origin.BONUS: "verifier's bonus",
    Origin.VERIFIER: "verifier",
    Origin.DRAFTER: "drafter",
}
ORIGINS = {
    "speculative": (Origin.DRAFT, Origin.RULE, Origin.CORRECTION, Origin.BONUS),
    "token_cascade": (Origin.DRAFTER, Origin.VERIFIER),
    "sequence_cascade": (Origin.DRAFTER, Origin.VERIFIER),
}
"""Whose tokens a method mixes; those that are not in it have one kind only."""

_MOST_ROWS = 20  # requests that the table lists one by one

# What a terminal would obey and a model has no business to say: shown as symbols. "\r" only troubles a terminal.
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t\r"}
_CONTROLS |= {code: 0xFFFD for code in range(0x80, 0xA0)} | {0x7F: 0x2421, ord("\r"): None}


@contextlib.contextmanager
def progress(console: Console, total: int) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """Shows a bar where the console is a terminal; gives a function that names what is done, and one that counts it."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        bar = shown.add_task("", total=total)
        yield lambda text: shown.update(bar, description=text), lambda: shown.advance(bar)


class Screen:
    """Prints text to the standard output as it comes, unchanged where that is no terminal.

    Several requests at once are printed one after the other: the first that is open streams, and the text of the others
    waits for its turn.
    """

    def __init__(self, console: Console, prompts: Sequence[str], *, headings: bool):
        self._console = console
        self._prompts = prompts
        self._headings = headings
        self._waiting: dict[int, list[tuple[str, int]]] = {}
        self._ended: set[int] = set()
        self._skipped: set[int] = set()
        self._current = 0
        self._begun = False

    def show(self, index: int, text: str, origin: int) -> None:
        if index == self._current:
            self._print(text, origin)
        else:
            self._waiting.setdefault(index, []).append((text, origin))

    def skip(self, index: int) -> None:
        """Passes a request over that is not decoded; called before any other."""
        self._skipped.add(index)
        while self._current in self._skipped:
            self._current += 1

    def end(self, index: int) -> None:
        """Marks a request as ended; moves on to the next that has something to show."""
        self._ended.add(index)
        while self._current in self._ended or self._current in self._skipped:
            if self._current in self._ended:
                self._heading()
                self._write("\n\n" if self._headings else "\n")
            self._current += 1
            self._begun = False
            for text, origin in self._waiting.pop(self._current, ()):
                self._print(text, origin)

    def close(self) -> None:
        """Ends the line that an interrupt left open."""
        if self._begun:
            self._write("\n")
            self._begun = False

    def _heading(self) -> None:
        if not self._begun and self._headings:
            prompt = " ".join(self._prompts[self._current].split())
            number = f"[{self._current + 1}/{len(self._prompts)}] "
            room = max(self._console.width - len(number), 20) if self._console.is_terminal else 100
            short = prompt if len(prompt) <= room else prompt[: room - 1] + "…"
            self._write(f"{number}{short}", "bold")
            self._write("\n")
        self._begun = True

    def _print(self, text: str, origin: int) -> None:
        self._heading()
        self._write(text, STYLES.get(Origin(origin)))

    def _write(self, text: str, style: str | None = None) -> None:
        # Not `Console.print`, which takes tabs and carriage returns out of the text.
        console = self._console
        if console.is_terminal:
            text = text.translate(_CONTROLS)
            if style and console.color_system and not console.no_color:
                text = Style.parse(style).render(text, color_system=ColorSystem.STANDARD)
        try:
            console.file.write(text)
            console.file.flush()
        except BrokenPipeError:  # as in `| head`
            console.on_broken_pipe()


def legend(console: Console, method: str) -> None:
    """Says what the colours of a method mean, on a terminal."""
    if console.is_terminal and method in ORIGINS:
        parts = [f"[{STYLES[origin]}]{MEANINGS[origin]}[/]" for origin in ORIGINS[method]]
        console.print(" · ".join(parts), highlight=False)


def table(results: Sequence[tuple[int, Result]], places: Sequence[int] | None = None) -> Table:
    """Returns a row per request (unless they are many) and one of the whole; it fits 80 columns.

    Args:
      results: each with the index of its request. places: what each is called, from 0, where that is not its index.
    """
    results = sorted(results, key=lambda pair: pair[0])
    drawn = Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("request", "tokens", "ended by", "tok/call", "accept", "defer", "first", "time", "tok/s"):
        drawn.add_column(name, justify="left" if name in ("request", "ended by") else "right", no_wrap=True)
    if len(results) <= _MOST_ROWS:
        for index, result in results:
            drawn.add_row(str((places[index] if places else index) + 1), *_cells(result.finish_reason, result.stats))
        drawn.add_section()
    if len(results) > 1:
        drawn.add_row(f"all {len(results)}", *_cells("", _whole(results)))
    return drawn


def positions(results: Sequence[tuple[int, Result]]) -> str:
    """Returns a line on the shares of drafts that were kept at each position; nothing where none were made."""
    drafted: list[int] = []
    kept: list[float] = []
    for _, result in results:
        made, rates = result.stats["drafted_by_position"], result.stats["acceptance_by_position"]
        missing = [0] * (len(made) - len(drafted))
        drafted, kept = drafted + missing, kept + missing
        for at, (count, rate) in enumerate(zip(made, rates, strict=True)):
            drafted[at] += count
            kept[at] += count * (rate or 0.0)
    shares = ", ".join(f"{part / count:.0%}" for part, count in zip(kept, drafted, strict=True) if count)
    return f"accepted at position 1, 2, … of a draft: {shares}" if shares else ""


def without_drafter(results: Sequence[tuple[int, Result]]) -> str:
    """Returns a line on the requests whose drafter said NaN; nothing where there were none."""
    count = sum(result.stats.get("drafter_nan", 0) for _, result in results)
    return f"the drafter said NaN: {count} request{'s'[: count > 1]} went on without it" if count else ""


def costs(results: Sequence[tuple[int, Result]]) -> Sequence[str]:
    """Returns a line on what was won, and on the costs by which it was tried; and one by which they may be given back.

    Nothing where there are no costs: no drafter, or a controller that reads none.
    """
    known = [result.stats for _, result in results if result.stats.get("costs")]
    if not known:
        return ()
    last, lines = known[-1]["costs"], []
    clocked = [stats for stats in known if stats["costs"]["unit_s"]]
    seconds = sum(stats["wall_s"] - stats["prefill_s"] for stats in clocked)
    alone = sum(stats["tokens_out"] * stats["costs"]["unit_s"] for stats in clocked)
    verify = last["verify"]
    shown = [k for k in (1, 4, len(verify) - 1) if k < len(verify)]
    of_k = ", ".join(f"{verify[k]:.2f} (k = {k})" for k in dict.fromkeys(shown))
    if seconds > 0:
        unit = 1e3 * clocked[-1]["costs"]["unit_s"]
        lines.append(
            f"decoding {alone / seconds:.2f}x as fast as the verifier alone, computed from its own measured pass "
            f"({unit:.1f} ms); of that a drafter step takes {last['draft']:.2f}, a pass over k drafts {of_k}"
        )
    if not last["given"]:
        lines.append("the same costs again: " + knob(last["draft"], verify, last["catch_up"]))
    return lines


def compile_seconds(results: Sequence[tuple[int, Result]]) -> int | float:
    """Returns the time that was spent compiling for these requests."""
    return sum(result.stats["compile_s"] for _, result in results)


def _cells(reason: str, stats: dict) -> list[str]:
    return [
        str(stats["tokens_out"]),
        reason,
        _figure(stats["block_efficiency"], "{:.2f}"),
        _figure(stats["acceptance_rate"], "{:.0%}"),
        _figure(stats["deferral_rate"], "{:.0%}"),
        _seconds(stats["ttft_s"]),
        _seconds(stats["wall_s"]),
        _figure(stats["tokens_per_s"], "{:.1f}"),
    ]


def _whole(results: Sequence[tuple[int, Result]]) -> dict:
    """Rates of summed counts; requests that were decoded side by side share their time."""

    def add(name: str) -> int | float:
        return sum(result.stats[name] for _, result in results)

    def ratio(a: int | float, b: int | float) -> float | None:
        return a / b if b else None

    seconds = _busy([(result.stats["start_s"], result.stats["wall_s"]) for _, result in results])
    return {
        "tokens_out": add("tokens_out"),
        "block_efficiency": ratio(add("tokens_out"), add("verifier_calls")),
        "acceptance_rate": ratio(add("accepted"), add("drafted")),
        "deferral_rate": ratio(add("deferred"), add("decided")),
        "ttft_s": None,
        "wall_s": seconds,
        "tokens_per_s": ratio(add("tokens_out"), seconds),
    }


def _busy(spans: list[tuple[float, float]]) -> float:
    """Returns for how long at least one of some spans, each of a start and a length, was going on."""
    total, until = 0.0, 0.0
    for start, length in sorted(spans):
        total += max(start + length - max(start, until), 0.0)
        until = max(until, start + length)
    return total


def _seconds(value: int | float | None) -> str:
    return _figure(value, "{:.2f} s" if (value or 0) < 100 else "{:.0f} s")


def _figure(value: int | float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def consoles(quiet: bool = False) -> tuple[Console, Console]:
    """Returns the console of the answer (standard output) and that of everything else (standard error).

    quiet: nothing is shown on either; for hosts that follow another.
    """
    for stream in (sys.stdout, sys.stderr):  # a narrow encoding should not end a run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if quiet:
        nowhere = open(os.devnull, "w", encoding="utf-8")  # open as long as the process
        return Console(file=nowhere), Console(file=nowhere)
    return Console(file=sys.stdout), Console(file=sys.stderr)
