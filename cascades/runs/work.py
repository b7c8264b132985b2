"""What is asked of every point of a sweep: prompts of a file or of tasks, engines that answer, and lines of answers."""

import contextlib
import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from rich.console import Console

from cascades.errors import UserError
from cascades.evaluation.tasks.contract import Metric, Task
from cascades.generation import (
    Engine,
    LoadedPair,
    PairSpec,
    PromptSpec,
    Query,
    Result,
    Settings,
    build,
    default_dtype,
    queries,
    records,
)
from cascades.generation import prompts as prompt_files
from cascades.generation.engine import sharing
from cascades.runs import fingerprint
from cascades.runs.points import Point, described

FILE = "results.jsonl"


class Work(NamedTuple):
    """What is asked of every point.

    entries: a prompt each, with `prompt`, `id`, the name of its `task` and the `record` that its answer is scored by.
    requests: the same as the engines take them. tasks: those of the entries.
    """

    entries: list[dict[str, Any]]
    requests: list[Query]
    tasks: Sequence[Task]


class Run(NamedTuple):
    """A run that goes on in its folder.

    engines: by `Point.program`. about: what its lines share. name: a digest of that, in every line. folder: of its
    `results.jsonl`. lines: that it has already, to which others are added.
    """

    engines: dict[tuple, Engine]
    work: Work
    about: dict[str, Any]
    name: str
    folder: pathlib.Path
    lines: list[dict[str, Any]]


def begin(
    pair: PairSpec,
    loaded: LoadedPair,
    swept: Sequence[Point],
    settings: Settings,
    prompts: PromptSpec,
    asked: tuple[Sequence[Task], list[dict[str, Any]]],
    folder: pathlib.Path,
    kind: str,
    err: Console,
) -> Run:
    """Builds the engines of all points, and reads what the folder holds of a run with the same settings.

    Args:
      loaded: of `pair`. asked: of `asked_of`. kind: runs of another do not mix.
    """
    tasks, entries = asked
    engines = _engines(swept, loaded)
    work = Work(entries, _requests_for(engines, entries, tasks, prompts, settings), tasks)
    about = _about(pair, settings, prompts, work, kind)
    name = fingerprint.digest(about)
    (folder / f"{name}.settings.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return Run(engines, work, about, name, folder, _kept(folder / FILE, name, entries, err))


@contextlib.contextmanager
def appending(run: Run) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields a function that adds a line to those of a run and to its file."""
    file = records.open_append(str(run.folder / FILE))

    def keep(line: dict[str, Any]) -> None:
        run.lines.append({"run": run.name, **line})
        records.append(file, _written(run.lines[-1]))

    try:
        yield keep
    finally:
        file.close()


def asked_of(tasks: Any, score: Any, path: str) -> tuple[list[Task], list[dict[str, Any]]]:
    """Returns the tasks of a run, checked, and their entries, see `Work`; without tasks, those of a file of prompts.

    Args:
      score: of answers to the file. path: of it.

    Raises:
      UserError: they are no tasks, two have one name, or there is a score beside them; prompts cannot be read.
    """
    tasks = _tasks(tasks, score)
    if not tasks:
        return [file_task(score)], read_prompts(path)
    return tasks, [
        {"prompt": example.prompt, "id": f"{task.name}/{example.id}", "task": task.name, "record": example.record}
        for task in tasks
        for example in task.examples()
    ]


def _tasks(tasks: Any, score: Any) -> list[Task]:
    if not isinstance(tasks, list | tuple) or isinstance(tasks, Task):
        raise UserError(f"TASKS must be a list as in [@gsm8k()], not {tasks!r}")
    for task in tasks:
        if not isinstance(task, Task):
            raise UserError(f"each of TASKS is a task with its brackets, as in @gsm8k(), not {task!r}")
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise UserError(f"TASKS must have names of their own, not {', '.join(names)}")
    if tasks and score is not None:
        raise UserError("SCORE is for the answers to INPUT, and TASKS have metrics of their own: leave SCORE None")
    return list(tasks)


def of_task(entries: Sequence[dict[str, Any]], task: Task) -> list[dict[str, Any]]:
    """Returns the entries of one task."""
    return [entry for entry in entries if entry["task"] == task.name]


def file_task(score: Any) -> Task:
    """Returns the task of a file of prompts, whose name is empty; its metric is the mean of `score`, if there is one.

    A score of all texts together has no parts to add, and is told of clock runs alone.
    """

    def statistics(record: dict[str, Any], text: str) -> tuple[float, float]:
        found = score(record, text)
        return (0.0, 0.0) if found is None else (float(found), 1.0)

    def value(sums: Any) -> float:
        return float(sums[0] / sums[1]) if sums[1] else math.nan

    metrics = ()
    if score is not None and not getattr(score, "whole", False):
        metrics = (Metric(getattr(score, "__name__", "score"), "The mean of SCORE.", statistics, value),)
    return Task("", "A file of prompts.", list, metrics, (), 1, False)


def read_prompts(path: str) -> list[dict[str, Any]]:
    """Returns the prompts with an `id` each; one that occurs again is dropped. Looks here, then in the repository."""
    if not isinstance(path, str) or not path:
        raise UserError("INPUT must be a JSONL file of prompts, in quotes, as in --gin.INPUT=\"'prompts.jsonl'\"")
    inside = pathlib.Path(__file__).resolve().parents[2] / path
    here = pathlib.Path(path).expanduser()
    read = prompt_files.read(str(inside if inside.is_file() and not here.is_file() else here))
    entries = [
        {"prompt": each["prompt"], "id": fingerprint.digest(each["prompt"]), "task": "", "record": each}
        for each in read
    ]
    return list({entry["prompt"]: entry for entry in entries}.values())


def _engines(swept: Sequence[Point], pair: LoadedPair) -> dict[tuple, Engine]:
    """Returns an engine for each program that the points need, by `Point.program`."""
    engines: dict[tuple, Engine] = {}
    for point in swept:
        if point.program not in engines:
            engines[point.program] = sharing(build(pair, point.settings), engines.values())
    return engines


def requests_of(engines: Iterable[Engine], texts: list[str], prompts: PromptSpec, settings: Settings) -> list[Query]:
    """Returns the requests, whose answers may be as long for every method."""
    shortest = min(engines, key=lambda engine: engine.context)
    room = min(shortest.context, settings.context or shortest.context)
    asked = queries(shortest, texts, raw=prompts.raw_prompt, control_tokens=prompts.control_tokens)
    return [each._replace(max_new_tokens=min(settings.max_new_tokens, room - len(each.ids))) for each in asked]


def _requests_for(
    engines: dict[tuple, Engine], entries: list[dict], tasks: Sequence[Task], prompts: PromptSpec, settings: Settings
) -> list[Query]:
    """As `requests_of`; a task says itself how it is asked, and where its answers end."""
    requests = []
    for task in tasks:
        texts = [entry["prompt"] for entry in of_task(entries, task)]
        if not task.name:
            requests += requests_of(engines.values(), texts, prompts, settings)
            continue
        asked = dataclasses.replace(settings, max_new_tokens=task.max_new_tokens)
        each = requests_of(engines.values(), texts, dataclasses.replace(prompts, raw_prompt=task.raw_prompt), asked)
        requests += [request._replace(stop=(*settings.stop, *task.stop)) for request in each]
    return requests


def line(point: Point, entry: dict[str, Any], result: Result) -> dict[str, Any]:
    """Returns what is kept of an answer, before it is scored."""
    origins = {name: result.origins.count(name) for name in dict.fromkeys(result.origins)}
    return {
        "task": entry["task"],
        **described(point),
        "prompt_id": entry["id"],
        "prompt_hash": fingerprint.digest(entry["prompt"]),
        "input": entry["record"],
        "text": result.text,
        "scores": None,
        "finish_reason": result.finish_reason,
        "origins": origins,
        "stats": result.stats,
    }


def _about(pair: PairSpec, settings: Settings, prompts: PromptSpec, work: Work, kind: str) -> dict[str, Any]:
    """Returns all that lines of one run share: results of another are not compared with them."""
    about = {
        "kind": kind,
        **fingerprint.of_code(dataclasses.asdict(pair)),
        "dtype": str(default_dtype(pair.dtype).__name__),
        **{f.name: fingerprint.of_code(getattr(settings, f.name)) for f in dataclasses.fields(settings)},
        **dataclasses.asdict(prompts),
        "asked": {
            task.name: [task.raw_prompt, task.stop, task.max_new_tokens, [each.definition for each in task.metrics]]
            for task in work.tasks
            if task.name
        },
        "longest": max(len(request.ids) + request.max_new_tokens for request in work.requests),
        "device": [jax.default_backend(), jax.devices()[0].device_kind, jax.device_count()],
        "jax": jax.__version__,
    }
    of_points = ("rule", "more_rules", "alpha", "lookahead", "temperature")
    return {name: value for name, value in about.items() if name not in of_points}


def _kept(path: pathlib.Path, run: str, entries: Sequence[dict[str, Any]], err: Console) -> list[dict[str, Any]]:
    """Returns the lines of a file that are of this run and of its prompts, and tells how many others there are."""
    asked = {entry["id"]: fingerprint.digest(entry["prompt"]) for entry in entries}
    before = [_loaded(each) for each in records.load(str(path))]
    lines = [each for each in before if each.get("run") == run and each["prompt_hash"] == asked.get(each["prompt_id"])]
    if len(lines) < len(before):
        left = f"{len(before) - len(lines)} lines of {path} have other settings or prompts and are left out"
        err.print(left, highlight=False)
    return lines


def _written(line: dict[str, Any]) -> dict[str, Any]:
    """A line as it is written: JSON has no word for an infinite threshold, so a text is it."""
    alpha = line["alpha"]
    return {**line, "alpha": str(alpha)} if alpha is not None and math.isinf(alpha) else line


def _loaded(line: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `_written`."""
    return {**line, "alpha": float(line["alpha"])} if line.get("alpha") in ("inf", "-inf") else line
