"""Clock runs: batches of prompts, each point timed next to the verifier alone in the same process."""

import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from rich.console import Console

from cascades.errors import UserError
from cascades.evaluation import summary
from cascades.generation import Engine, Query, Result, Shapes, complete, prepare
from cascades.runs import fingerprint, terminal
from cascades.runs.points import Point, requested

_WARM_UP = 4  # tokens that a program decodes before it is timed


class TimedBatch(NamedTuple):
    """What is timed at once: a batch of prompts of one task, by their places."""

    point: Point
    repeat: int
    chosen: tuple[int, ...]
    unit: str


def batches(
    swept: Sequence[Point], entries: Sequence[dict[str, Any]], batch: int, repeats: int, done: Sequence[dict[str, Any]]
) -> list[TimedBatch]:
    """Returns what is left to run. Points stand side by side within a batch: what is compared was run together."""
    have = {(line["task"], *summary.key(line), line["temperature"]) for line in done}
    left = []
    for repeat in range(repeats):
        for task, places in groupby(range(len(entries)), key=lambda at: entries[at]["task"]):
            of_task = list(places)
            for first in range(0, len(of_task), batch):
                chosen = tuple(of_task[first : first + batch])
                ids = [entries[at]["id"] for at in chosen]
                unit = fingerprint.digest(ids)
                for point in swept:
                    if not all((task, *point[:5], repeat, unit, each, point.temperature) in have for each in ids):
                        left.append(TimedBatch(point, repeat, chosen, unit))
    return left


def timed(
    wanted: Sequence[TimedBatch], engines: dict[tuple, Engine], requests: Sequence[Query], err: Console
) -> Iterator[tuple[TimedBatch, list[Result]]]:
    """Runs batches in their order; yields each with its results. A program is compiled and warmed up at its first."""
    shapes: dict[tuple, Shapes | None] = {}
    began = time.perf_counter()
    with terminal.progress(err, len(wanted)) as (tell, advance):
        for number, each in enumerate(wanted):
            point = each.point
            engine = engines[point.program]
            group = [requested(point, requests[at]) for at in each.chosen]
            if point.program not in shapes:
                tell(f"compiling {point.rule} {point.lookahead}")
                whole = engine.settings.method != "sequence_cascade"
                shapes[point.program] = prepare(engine, requests) if whole else None
                short = [one._replace(max_new_tokens=min(_WARM_UP, one.max_new_tokens)) for one in group]
                complete(engine, short, shapes=shapes[point.program], together=True)
            tell(point.label)
            results = complete(engine, group, shapes=shapes[point.program], together=True)
            for at, result in zip(each.chosen, results, strict=True):
                if result.error:  # figures of half an answer would be wrong ones
                    raise UserError(
                        f"prompt {at + 1} of {len(requests)} has no answer with {point.label}: {result.error}"
                    )
            yield each, results
            advance()
            last = number + 1 == len(wanted) or wanted[number + 1][1:] != each[1:]
            if last and not err.is_terminal:
                err.print(f"{number + 1} of {len(wanted)} done, {time.perf_counter() - began:.0f} s", highlight=False)
