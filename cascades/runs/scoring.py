"""Scores of answers: anew, and in threads while others are decoded."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from typing import Any

from rich.console import Console

from cascades.errors import UserError
from cascades.evaluation import counts, sandbox
from cascades.evaluation.tasks.contract import Task

WORKERS = min(4, os.cpu_count() or 1)
WAITING = 64  # answers without their scores, at most: what a kill may cost
GRACE = 5.0  # seconds that what is being scored has for its end

Keep = Callable[[dict[str, Any]], None]
"""`keep(line)`: writes a line of an answer."""


@contextlib.contextmanager
def scoring(tasks: Sequence[Task], keep: Keep, err: Console) -> Iterator[Keep]:
    """Yields a function that takes lines without scores; `keep` gets each with them as soon as they are known, one at a
    time, in whatever order. On the way out all have been scored.

    Metrics of tasks are computed in threads. SCORE is called here and now: a function of the user's own may need the
    main thread, as one with an alarm does, and may not bear to be called twice at once.

    What ends the body early ends the programs that are being scored; what has no scores by then is not kept.
    """
    by_name = {task.name: task for task in tasks}
    stop, lock = threading.Event(), threading.Lock()
    pool = ThreadPoolExecutor(WORKERS, initializer=sandbox.heed, initargs=(stop,))
    waiting: set[Future] = set()

    def finish(line: dict[str, Any]) -> None:
        scored = {**line, "scores": scores(by_name[line["task"]], line, err)}
        with lock:
            if not stop.is_set():  # else its program may have been ended before it passed
                keep(scored)

    def take(line: dict[str, Any]) -> None:
        nonlocal waiting
        if not line["task"]:
            finish(line)
            return
        done, waiting = wait(waiting, 0 if len(waiting) < WAITING else None, FIRST_COMPLETED)
        for each in done:
            each.result()
        waiting.add(pool.submit(finish, line))

    try:
        yield take
        for each in as_completed(waiting):
            each.result()
    finally:
        with lock:
            stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        wait([each for each in waiting if not each.cancelled()], GRACE)


def anew(lines: Sequence[dict[str, Any]], tasks: Sequence[Task], err: Console) -> list[dict[str, Any]]:
    """Returns lines whose scores are those of SCORE as it is now: it is the user's, and may have been mended since.

    Scores of tasks are kept, as some take long; a metric of another definition is another run's.
    """
    files = {task.name: task for task in tasks if not task.name}
    return [
        {**each, "scores": scores(files[each["task"]], each, err)} if each["task"] in files else each for each in lines
    ]


def scores(task: Task, line: dict[str, Any], err: Console) -> dict[str, list[float]] | None:
    """Returns the statistics of an answer, or None and says why where a metric fails on it."""
    try:
        return counts.scores(task, line["input"], line["text"])
    except UserError:
        raise
    except Exception as error:  # whatever a function of the user's own does
        label = line["rule"] if line["alpha"] is None else f"{line['rule']} {line['alpha']:g}"
        err.print(f"{line['prompt_id']} with {label} has no score: {error!r:.200}", markup=False)
        return None
