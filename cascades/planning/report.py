"""What a plan says to people: a table of a slice's steps, and of many slices."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from cascades.planning.fit import Fit
from cascades.planning.passes import Whole
from cascades.planning.speeds import ACCEPTANCES, TARGETS


def show(console: Console, drawn: Table) -> None:
    """Prints all of a table: in a narrow console, or in none, its lines are as long as they must be."""
    wanted = console.measure(drawn, options=console.options.update(width=_WIDEST)).maximum
    Console(file=console.file, width=max(console.width, wanted)).print(drawn)


def table(one: Fit) -> Table:
    """Returns a row a step."""
    drawn = _table(f"a chip of {one.topology}: GB held, bytes moved over the least, rules' share")
    names = ("step", "weights", "cache", "temp", "moved", "rules", "GFLOP", "reduces", "rules'", "other", "ms")
    for name in names:
        drawn.add_column(name, justify="left" if name == "step" else "right", no_wrap=True)
    assert one.draft is not None
    for name, cost in [("draft", one.draft), *((f"verify {width}", cost) for width, cost in one.verify.items())]:
        drawn.add_row(
            name,
            *(f"{size / 1e9:.2f}" for size in (cost.weights, cost.cache, cost.temporaries)),
            f"{cost.moved / cost.least:.2f}x",
            f"{cost.chosen / cost.moved:.1%}",
            f"{cost.flops / 1e9:.1f}",
            *map(str, _collectives(cost.collectives, cost.chosen_collectives)),
            f"{1e3 * cost.seconds(one.chip):.2f}",
        )
    return drawn


def comparison(records: Sequence[dict[str, Any]], acceptance: float) -> Table:
    """Returns a row a cell: how fast it could be."""
    drawn = _table(f"acceptance {acceptance:g}")
    several = _varying(records)
    for name in (*several, "slice", "chips", "fits", "GB a chip", "of", "alone ms", "best k", "speed-up", "tokens/s"):
        drawn.add_column(name, justify="left" if name in ("verifier", "slice") else "right", no_wrap=True)
    for one in records:
        cells = ["–"] * 4
        if one["verify"]:
            alone = f"{1e3 * one['verify']['1']['seconds']:.2f}"
            cells = [alone, str(one["best_k"]), f"{one['speedup']:.2f}x", f"{one['tokens_per_s']:.0f}"]
        drawn.add_row(*_place(one, several), str(one["chips"]), *_memory(one), *cells)
    return drawn


def grid(records: Sequence[dict[str, Any]], width: int) -> Table:
    """Returns a row a cell: what the verifier's widest pass takes."""
    drawn = _table(f"a verifier pass over {width} tokens: GB and bytes of one chip")
    several = _varying(records)
    memory = ("slice", "chips", "fits", "GB", "of")
    names = (*memory, "moved", "temp", "reduces a layer", "rules'", "other", "rules")
    for name in (*several, *names):
        drawn.add_column(name, justify="left" if name in ("verifier", "slice") else "right", no_wrap=True)
    for one in records:
        cells = ["–"] * 6
        if one["verify"]:
            cost = one["verify"][str(width)]
            reduced, chosen, other = _collectives(cost["collectives"], cost["chosen_collectives"])
            cells = [
                f"{cost['moved'] / cost['least']:.2f}x",
                f"{cost['temporaries'] / 1e9:.2f}",
                f"{reduced / one['layers']:.2f}",
                str(chosen),
                str(other),
                f"{cost['chosen'] / cost['moved']:.1%}",
            ]
        drawn.add_row(*_place(one, several), str(one["chips"]), *_memory(one), *cells)
    return drawn


def drafters(records: Sequence[dict[str, Any]]) -> Table:
    """Returns a row a drafter of chains and one of trees: how fast it could be, and what a speed asks of it.

    c is a drafter step, in ms, of a verifier's pass over one token; sent are the step's collectives.
    """
    drawn = _table(
        "speed-up at each acceptance (best k; of trees drafts x levels), and the acceptance that 2x and 3x need"
    )
    several = _varying(records)
    figures = (*(f"{acceptance:g}" for acceptance in ACCEPTANCES), *(f"{target:g}x from" for target in TARGETS))
    left = ("verifier", "slice", "drafter", "lives", "drafts")
    for name in (*several, "slice", "drafter", "lives", "GB", "ms", "of", "c", "sent", "drafts", *figures):
        drawn.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    for one in records:
        about = [*_place(one, several), one["drafter"], one["drafter_strategy"] or "–", f"{one['held'] / 1e9:.2f}"]
        if "c" not in one:
            drawn.add_row(*about, "does not fit")
            continue
        step = one["draft"] or {"seconds": 0.0, "collectives": {}}
        sent = str(sum(count for count, _ in step["collectives"].values()))
        costs = [f"{1e3 * each['seconds']:.3f}" for each in (step, one["verify"]["1"])]
        speeds = [f"{each['speedup']:.2f}x ({each['k']})" for each in one["chain"].values()]
        drawn.add_row(*about, *costs, f"{one['c']:.3f}", sent, "chain", *speeds, *_least(one["least_chain"]))
        if one["tree"]:
            speeds = [f"{each['speedup']:.2f}x ({each['nodes']}x{each['depth']})" for each in one["tree"].values()]
            drawn.add_row(*[""] * (len(about) + 4), "tree*", *speeds, *_least(one["least_tree"]))
    return drawn


def _least(acceptances: dict[str, float | None]) -> list[str]:
    return ["never" if each is None else f"{each:.3f}" for each in acceptances.values()]


def _collectives(all_of: dict[str, Any], chosen: dict[str, Any]) -> tuple[int, int, int]:
    """Counts of all-reduces of a model, of those of rules and sampling, and of other collectives."""
    reduced, small = (each.get("all-reduce", (0, 0))[0] for each in (all_of, chosen))
    return reduced - small, small, sum(count for kind, (count, _) in all_of.items() if kind != "all-reduce")


_WIDEST = 500  # columns of a table that nothing narrows
_AXES = {"verifier": "verifier", "weights": "weights", "batch": "batch", "context": "slots"}


def _table(title: str) -> Table:
    return Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title)


def _varying(records: Sequence[dict[str, Any]]) -> list[str]:
    """The axes along which cells differ."""
    return [name for name, key in _AXES.items() if len({one[key] for one in records}) > 1]


def _place(one: dict[str, Any], several: Sequence[str]) -> list[str]:
    return [str(one[_AXES[name]] or "bf16") for name in several] + [one["topology"]]


def _memory(one: dict[str, Any]) -> tuple[str, str, str]:
    return "yes" if one["fits"] else "no", f"{one['needed'] / 1e9:.2f}", f"{one['memory'] / 1e9:.0f}"


def tell(out: Console, one: Fit, loop: Whole | None, acceptance: float, smallest: str | None) -> None:
    """Prints what is known of a slice. loop: the whole program, if it was compiled. smallest: see `smallest_slice`."""
    if one.verify:
        show(out, table(one))
    verdict = "fits" if one.fits else "DOES NOT FIT"
    text = f"{one.topology}: {verdict}, {one.needed / 1e9:.2f} of {one.chip.memory / 1e9:.1f} GB a chip"
    kind = one.topology.partition(":")[0]
    text += (
        f"; the smallest {kind} slice that holds weights and caches is {smallest or 'larger than any planned for'}. "
    )
    if one.verify:
        text += (
            f"At an acceptance of {acceptance:g} the best k is {one.best_k}: {one.speedup:.2f}x the verifier alone and "
            f"{one.tokens_per_s:.0f} tokens/s at most."
        )
    if loop is not None:
        text += (
            f" The loop carries {loop.state / 1e9:.2f} GB, updates {loop.aliased / 1e9:.2f} GB of them in place, and "
            f"takes {loop.temporaries / 1e9:.2f} GB of temporaries."
        )
    out.print(text, highlight=False)
