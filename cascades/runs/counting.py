"""Count runs: what rules do to texts and to the number of passes, in batches as full as they get, without a clock."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from rich.console import Console

from cascades import lookahead
from cascades.errors import UserError
from cascades.evaluation import counts
from cascades.generation import Engine, Query, Result, Shapes, generate, prepare
from cascades.generation.slots import Finished, with_name
from cascades.runs import terminal
from cascades.runs.points import Point, described, requested
from cascades.runs.scoring import Keep, scoring
from cascades.runs.work import Work, line, of_task

SHOWN = 3  # examples of a task whose answers are kept with the origin of each piece, for the page


class Counted(NamedTuple):
    """An answer that a count run asks for: of an example, by its place in the file, at a point."""

    point: Point
    at: int


class Answer(NamedTuple):
    """What came of it. pieces: its text, cut where another origin begins, with the number of each."""

    result: Result
    pieces: list[tuple[str, int]]


def check(points: Sequence[Point]) -> None:
    """Raises a UserError where how long drafts are would hang on the clock: then counts would not repeat."""
    for point in points:
        controller = point.settings.lookahead
        assert isinstance(controller, lookahead.DraftLength)
        if point.rule_id and controller.timed and not point.settings.costs:
            raise UserError(
                f"a count run has no clock, by which {controller.name} chooses the length of drafts: set LOOKAHEAD to "
                "@fixed(), or give COSTS"
            )


def counted(
    wanted: Sequence[Counted], engines: dict[tuple, Engine], queries: Sequence[Query]
) -> Iterator[tuple[Counted, Answer]]:
    """Decodes what is wanted, program by program; an answer is yielded as soon as it has ended.

    All points of a program share its rows: one is admitted as soon as another has ended, whichever threshold it has.
    """
    by_program: dict[tuple, list[Counted]] = {}
    for each in wanted:
        by_program.setdefault(each.point.program, []).append(each)
    for program, each in by_program.items():
        engine = engines[program]
        # Its name is its own, so that a draw does not hang on what else is left to run.
        requests = [with_name(requested(one.point, queries[one.at]), 0) for one in each]
        shapes: Shapes | None = None
        if engine.settings.method != "sequence_cascade":
            shapes = prepare(engine, requests)
        pieces: dict[int, list[tuple[str, int]]] = {}
        for event in generate(engine, requests, rounds=16, shapes=shapes):
            if isinstance(event, Finished):
                yield each[event.index], Answer(event.result, pieces.pop(event.index, []))
                continue
            told = pieces.setdefault(event.index, [])
            if told and told[-1][1] == event.origin:
                told[-1] = (told[-1][0] + event.text, event.origin)
            else:
                told.append((event.text, int(event.origin)))


def count(
    swept: Sequence[Point], engines: dict[tuple, Engine], work: Work, done: Sequence[dict], keep: Keep, err: Console
) -> None:
    """Hands the lines of a count run that are not there yet to `keep`. An answer without a score costs no other."""
    have = {counts.key(line) for line in done}
    told = {entry["id"] for task in work.tasks for entry in of_task(work.entries, task)[:SHOWN]}
    wanted = [
        Counted(point, at)
        for point in swept
        for at, entry in enumerate(work.entries)
        if counts.key({"task": entry["task"], **described(point), "prompt_id": entry["id"]}) not in have
    ]
    often = max(len(wanted) // 2000, 1) * 100  # what a log or a notebook keeps is twenty lines or so, not thousands
    number = itertools.count(1)
    with terminal.progress(err, len(wanted)) as (tell, advance):

        def finished(line: dict[str, Any]) -> None:
            keep(line)
            advance()
            if (kept := next(number)) % often == 0 and not err.is_terminal:
                err.print(f"{kept} of {len(wanted)} answers", highlight=False)

        with scoring(work.tasks, finished, err) as score:
            for each, answer in counted(wanted, engines, work.requests):
                entry, result = work.entries[each.at], answer.result
                if result.error:
                    raise UserError(f"{entry['id']} has no answer with {each.point.label}: {result.error}")
                tell(each.point.label)
                new = line(each.point, entry, result)
                score({**new, "pieces": answer.pieces} if entry["id"] in told else new)
