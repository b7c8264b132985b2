"""Rules and thresholds over prompts, against the verifier alone: the run function of `launch/sweep.py`."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from rich.console import Console

from cascades import checks
from cascades import rules as deferral
from cascades.errors import UserError
from cascades.evaluation import counts, latency
from cascades.evaluation.counts import CountRow
from cascades.evaluation.summary import Row
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
    compilation_cache,
    default_dtype,
    load_pair,
    queries,
    records,
)
from cascades.generation import prompts as prompt_files
from cascades.generation.engine import sharing
from cascades.lookahead import verifier_guided
from cascades.runs import clock_report, count_report, counting, fingerprint, report, terminal, timing
from cascades.runs.points import Point, controllers_of, described, points

NAMED_MODULES = ("cascades.evaluation.scores", "cascades.evaluation.tasks")

_SHOWN = 3  # examples of a task whose answers are kept with the origin of each piece, for the page


class Work(NamedTuple):
    """What is asked of every point.

    entries: a prompt each, with `prompt`, `id`, the name of its `task` and the `record` that its answer is scored by.
    requests: the same as the engines take them. tasks: those of the entries.
    """

    entries: list[dict[str, Any]]
    requests: list[Query]
    tasks: Sequence[Task]


def sweep(
    *,
    pair: PairSpec,
    settings: Settings,
    output_dir: str,
    input: str,
    prompts: PromptSpec = PromptSpec(),
    rules: Any = ((deferral.token_v3, (0.0, 0.1, 0.3, 0.5)),),
    baselines: Any = (),
    lookahead: Any = verifier_guided,
    temperatures: Any = None,
    tasks: Any = (),
    clock: Any = True,
    repeats: int = 3,
    score: Any = None,
    latency_costs: Any = None,
    config_text: Callable[[], str] | None = None,
) -> list[Row] | list[CountRow]:
    """Runs rules at thresholds, and baselines, beside the verifier alone, with one compiled loop per rule.

    With `clock` every batch is timed next to the verifier's own. Without, answers are counted and scored, in batches as
    full as they get: there times mean nothing and none is told. A line per prompt, point and repeat is appended to
    `results.jsonl` as soon as it is known, and is not run again with the same settings. Tables, a CSV file, pictures
    and a page tell the outcome.

    Args:
      pair: the models. settings: how they decode, but for what is swept. prompts: how a text becomes a prompt.
      output_dir: folder of the results. input: a JSONL file of prompts, where there are no `tasks`.
      rules: pairs of a rule and its thresholds; a rule without, such as `lossless`, may stand alone. baselines: see
        `points.BASELINES`.
      lookahead: a draft-length controller, or a list of them, each to be run with every rule.
      temperatures: a list of them; None is `settings`' own.
      tasks: of `evaluation.tasks`. Each has its own prompts, ends of answers and metrics.
      clock: see above. repeats: how often every batch is timed. score: a `summary.Score` of answers to `input`.
      latency_costs: of a count run, by name the costs of machines on which its times are computed; see
        `latency.pass_costs`.
      config_text: gives the whole configuration, which is saved beside the results.

    Returns:
      Rows by task and temperature: the verifier alone, then each point.

    Raises:
      UserError: any input that cannot be used, in one sentence.
    """
    checks.switch("CLOCK", clock)
    swept = points(rules, controllers_of(lookahead), settings, baselines, temperatures)
    if not clock:
        counting.check(swept)
    pair = pair.needed(settings)
    pair.layouts(settings.batch_size)
    checks.whole("REPEATS", repeats, 1)
    if score is not None and not callable(score):
        raise UserError(f"SCORE must be a function of a record and a text, as @my_scores.exact, or None, not {score!r}")
    costs = _costs(latency_costs, settings)
    report.need_matplotlib()
    tasks = _tasks(tasks, score)
    entries = _entries(tasks) if tasks else read_prompts(input)
    folder = checks.folder("OUTPUT_DIR", output_dir)
    _, err = terminal.consoles()
    compilation_cache()
    engines = _engines(swept, load_pair(pair, chat_template=prompts.chat_template))
    work = Work(entries, _requests(engines, entries, tasks, prompts, settings), tasks or [file_task(score)])
    about = _about(pair, settings, prompts, work, clock)
    run = fingerprint.digest(about)
    (folder / f"{run}.settings.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    path = folder / "results.jsonl"
    before = [_loaded(line) for line in records.load(str(path))]
    lines = [line for line in before if line.get("run") == run]
    if len(lines) < len(before):
        err.print(f"{len(before) - len(lines)} lines of {path} have other settings and are left out", highlight=False)
    new = _clocked(swept, engines, work, settings.batch_size, repeats, lines, err)
    if not clock:
        new = _counted(swept, engines, work, lines, err)
    file = records.open_append(str(path))
    try:
        for line in new:
            lines.append({"run": run, **line})
            records.append(file, _written(lines[-1]))
    finally:
        file.close()
        if config_text:
            (folder / f"{run}.config.gin").write_text(config_text(), encoding="utf-8")
        known = {entry["id"] for entry in entries}
        lines = [line for line in lines if line["prompt_id"] in known]
        assert pair.drafter is not None  # every method of a sweep needs one
        title = f"{short(pair.drafter.uri)} -> {short(pair.verifier.uri)}"
        if clock:
            given = lines, work.tasks, score, folder, f"{settings.method}: {title}", about, repeats, err
            rows = clock_report.tell(*given)  # pyright: ignore[reportArgumentType]
        else:
            rows = counts.summarise(lines, work.tasks, costs)
            count_report.tell(rows, lines, work.tasks, folder, title, about, err)
    return rows


def _clocked(
    swept: Sequence[Point],
    engines: dict[tuple, Engine],
    work: Work,
    batch: int,
    repeats: int,
    done: Sequence[dict],
    err: Console,
) -> Iterator[dict[str, Any]]:
    """Yields the lines of a clock run that are not there yet."""
    wanted = timing.batches(swept, work.entries, batch, repeats, done)
    for each, results in timing.timed(wanted, engines, work.requests, err):
        for at, result in zip(each.chosen, results, strict=True):
            entry = work.entries[at]
            yield {"repeat": each.repeat, "unit": each.unit, **_line(each.point, entry, result, None)}


def _counted(
    swept: Sequence[Point], engines: dict[tuple, Engine], work: Work, done: Sequence[dict], err: Console
) -> Iterator[dict[str, Any]]:
    """Yields the lines of a count run that are not there yet. An answer without a score costs no other."""
    have, by_name = {counts.key(line) for line in done}, {task.name: task for task in work.tasks}
    told = {entry["id"] for task in work.tasks for entry in _of(work.entries, task)[:_SHOWN]}
    wanted = [
        counting.Counted(point, at)
        for point in swept
        for at, entry in enumerate(work.entries)
        if counts.key({"task": entry["task"], **described(point), "prompt_id": entry["id"]}) not in have
    ]
    with terminal.progress(err, len(wanted)) as (tell, advance):
        for number, (each, answer) in enumerate(counting.counted(wanted, engines, work.requests), 1):
            entry, result, scores = work.entries[each.at], answer.result, None
            if result.error:
                raise UserError(f"{entry['id']} has no answer with {each.point.label}: {result.error}")
            try:
                scores = counts.scores(by_name[entry["task"]], entry["record"], result.text)
            except UserError:
                raise
            except Exception as error:  # whatever a function of the user's own does
                err.print(f"{entry['id']} with {each.point.label} has no score: {error!r:.200}", markup=False)
            shown = {"pieces": answer.pieces} if entry["id"] in told else {}
            yield {**_line(each.point, entry, result, scores), **shown}
            tell(each.point.label)
            advance()
            if not err.is_terminal and number % 100 == 0:
                err.print(f"{number} of {len(wanted)} answers", highlight=False)


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


def _requests(
    engines: dict[tuple, Engine], entries: list[dict], tasks: Sequence[Task], prompts: PromptSpec, settings: Settings
) -> list[Query]:
    """As `requests_of`; a task says itself how it is asked, and where its answers end."""
    if not tasks:
        return requests_of(engines.values(), [entry["prompt"] for entry in entries], prompts, settings)
    requests = []
    for task in tasks:
        texts = [entry["prompt"] for entry in _of(entries, task)]
        asked = dataclasses.replace(settings, max_new_tokens=task.max_new_tokens)
        each = requests_of(engines.values(), texts, dataclasses.replace(prompts, raw_prompt=task.raw_prompt), asked)
        requests += [request._replace(stop=(*settings.stop, *task.stop)) for request in each]
    return requests


def _about(pair: PairSpec, settings: Settings, prompts: PromptSpec, work: Work, clock: bool) -> dict[str, Any]:
    """Returns all that lines of one run share: results of another are not compared with them."""
    about = {
        "kind": "clock" if clock else "count",
        **fingerprint.of_code(dataclasses.asdict(pair)),
        "dtype": str(default_dtype(pair.dtype).__name__),
        **{f.name: fingerprint.of_code(getattr(settings, f.name)) for f in dataclasses.fields(settings)},
        **dataclasses.asdict(prompts),
        "longest": max(len(request.ids) + request.max_new_tokens for request in work.requests),
        "device": [jax.default_backend(), jax.devices()[0].device_kind, jax.device_count()],
        "jax": jax.__version__,
    }
    of_points = ("rule", "more_rules", "alpha", "lookahead", "temperature")
    return {name: value for name, value in about.items() if name not in of_points}


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


def _entries(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    return [
        {"prompt": example.prompt, "id": f"{task.name}/{example.id}", "task": task.name, "record": example.record}
        for task in tasks
        for example in task.examples()
    ]


def _of(entries: Sequence[dict[str, Any]], task: Task) -> list[dict[str, Any]]:
    return [entry for entry in entries if entry["task"] == task.name]


def _costs(given: Any, settings: Settings) -> dict[str, latency.PassCosts]:
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        raise UserError(f"LATENCY must be names and costs, as in {{'Gemma, v5e': (0.4, (1.0, 1.1))}}, not {given!r}")
    costs = {name: latency.pass_costs(name, each) for name, each in given.items()}
    for name, each in costs.items():
        longest = len(each.verify) - 1
        if longest < settings.k_max:
            raise UserError(
                f"LATENCY of {name!r} holds drafts of up to {longest} token{'s' * (longest != 1)}, but K_MAX is "
                f"{settings.k_max}: give it a pass for each length, or lower K_MAX"
            )
    return costs


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


def _line(point: Point, entry: dict[str, Any], result: Result, scores: dict | None) -> dict[str, Any]:
    origins = {name: result.origins.count(name) for name in dict.fromkeys(result.origins)}
    return {
        "task": entry["task"],
        **described(point),
        "prompt_id": entry["id"],
        "input": entry["record"],
        "text": result.text,
        "scores": scores,
        "finish_reason": result.finish_reason,
        "origins": origins,
        "stats": result.stats,
    }


def _written(line: dict[str, Any]) -> dict[str, Any]:
    """A line as it is written: JSON has no word for an infinite threshold, so a text is it."""
    alpha = line["alpha"]
    return {**line, "alpha": str(alpha)} if alpha is not None and math.isinf(alpha) else line


def _loaded(line: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `_written`."""
    return {**line, "alpha": float(line["alpha"])} if line.get("alpha") in ("inf", "-inf") else line


def short(uri: Any) -> str:
    """The last part of a URI, without its checksum; ngram://3 stays as it is."""
    return uri if "ngram://" in uri else uri.partition("#")[0].rstrip("/").rpartition("/")[2] or uri
