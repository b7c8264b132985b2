"""Rules and thresholds over a file of prompts, against the verifier alone: the run function of `launch/sweep.py`."""

import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cascades import checks
from cascades import rules as deferral
from cascades.errors import UserError
from cascades.evaluation import summary
from cascades.evaluation.summary import VERIFIER, Row
from cascades.generation import (
    Engine,
    LoadedPair,
    PairSpec,
    PromptSpec,
    Query,
    Result,
    Settings,
    Shapes,
    build,
    compilation_cache,
    complete,
    default_dtype,
    load_pair,
    prepare,
    queries,
    records,
)
from cascades.generation import prompts as prompt_files
from cascades.generation.engine import sharing
from cascades.lookahead import DraftLength, verifier_guided
from cascades.runs import fingerprint, report, terminal

NAMED_MODULES = ("cascades.evaluation.scores",)
_METHODS = ("speculative", "token_cascade", "oracle_cascade")
_WARM_UP = 4  # tokens that a program decodes before it is timed


class Point(NamedTuple):
    """One line of the sweep: a rule at a threshold with a draft-length controller, or the verifier alone.

    rule_id, lookahead_id: digests of what the rule does and of the controller's code; empty for the verifier alone.
    """

    rule: str
    rule_id: str
    lookahead: str
    lookahead_id: str
    alpha: float | None
    settings: Settings

    @property
    def program(self) -> tuple:
        """What is compiled for it: thresholds are traced, so that all of a rule share a program."""
        return self[:4]


class TimedBatch(NamedTuple):
    """What is timed at once: a batch of prompts, by their places in the file."""

    point: Point
    repeat: int
    chosen: tuple[int, ...]
    unit: str


def sweep(
    *,
    pair: PairSpec,
    settings: Settings,
    output_dir: str,
    input: str,
    prompts: PromptSpec = PromptSpec(),
    rules: Any = ((deferral.token_v3, (0.0, 0.1, 0.3, 0.5)),),
    lookahead: Any = verifier_guided,
    repeats: int = 3,
    score: Any = None,
    config_text: Callable[[], str] | None = None,
) -> list[Row]:
    """Times rules at thresholds, batch by batch next to the verifier alone, with one compiled loop per rule.

    A line per prompt, rule, threshold and repeat is appended to `results.jsonl` as soon as its batch is done, and is
    not run again with the same settings. A table, `sweep.csv`, `sweep.png` and `sweep.html` tell the outcome.

    Args:
      pair: the models. settings: how they decode, but for rule, threshold and lookahead, which are swept. prompts: how
        a text becomes a prompt.
      output_dir: folder of the results. input: a JSONL file of prompts.
      rules: pairs of a rule and its thresholds; a rule without, such as `lossless`, may stand alone.
      lookahead: a draft-length controller, or a list of them, each to be run with every rule.
      repeats: how often every batch is timed. score: a `summary.Score` of answers.
      config_text: gives the whole configuration, which is saved beside the results.

    Returns:
      The verifier alone, then a row per rule and threshold.

    Raises:
      UserError: any input that cannot be used, in one sentence.
    """
    swept = points(rules, _controllers(lookahead), settings)
    pair = pair.needed(settings)
    pair.layouts(settings.batch_size)
    checks.whole("REPEATS", repeats, 1)
    if score is not None and not callable(score):
        raise UserError(f"SCORE must be a function of a record and a text, as @my_scores.exact, or None, not {score!r}")
    report.need_matplotlib()
    entries = read_prompts(input)
    folder = checks.folder("OUTPUT_DIR", output_dir)
    _, err = terminal.consoles()
    compilation_cache()
    engines = _engines(swept, load_pair(pair, chat_template=prompts.chat_template))
    requests = requests_of(engines.values(), [entry["prompt"] for entry in entries], prompts, settings)
    about = _about(pair, settings, prompts, requests)
    run = fingerprint.digest(about)
    (folder / f"{run}.settings.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    path = folder / "results.jsonl"
    before = [_loaded(line) for line in records.load(str(path))]
    lines = [line for line in before if line.get("run") == run]
    if len(lines) < len(before):
        err.print(f"{len(before) - len(lines)} lines of {path} have other settings and are left out", highlight=False)
    tasks = _tasks(swept, entries, len(requests), settings.batch_size, repeats, lines)
    file = records.open_append(str(path))
    try:
        for task, results in _timed(tasks, engines, requests, err):
            for at, result in zip(task.chosen, results, strict=True):
                lines.append(_line(run, task, entries[at], result))
                records.append(file, _written(lines[-1]))
    finally:
        file.close()
        if config_text:
            (folder / f"{run}.config.gin").write_text(config_text(), encoding="utf-8")
        known = {entry["id"] for entry in entries}
        lines = [line for line in lines if line["prompt_id"] in known]
        rows = summary.summarise(lines, score)  # pyright: ignore[reportArgumentType]
        if rows:
            _by_category(lines, score)
            assert pair.drafter is not None  # every method of a sweep needs one
            title = f"{settings.method}: {short(pair.drafter.uri)} -> {short(pair.verifier.uri)}"
            _tell(rows, folder, title, _notes(about, rows, repeats), err)
    return rows


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


def _about(pair: PairSpec, settings: Settings, prompts: PromptSpec, requests: Sequence[Query]) -> dict[str, Any]:
    """Returns all that lines of one run share: results of another are not compared with them."""
    about = {
        **fingerprint.of_code(dataclasses.asdict(pair)),
        "dtype": str(default_dtype(pair.dtype).__name__),
        **{f.name: fingerprint.of_code(getattr(settings, f.name)) for f in dataclasses.fields(settings)},
        **dataclasses.asdict(prompts),
        "longest": max(len(request.ids) + request.max_new_tokens for request in requests),
        "device": [jax.default_backend(), jax.devices()[0].device_kind, jax.device_count()],
        "jax": jax.__version__,
    }
    of_points = ("rule", "more_rules", "alpha", "lookahead")
    return {name: value for name, value in about.items() if name not in of_points}


def points(rules: Any, controllers: Sequence[Any], settings: Settings) -> list[Point]:
    """Returns the verifier alone and every rule at every threshold with every controller, checked.

    Raises:
      UserError: `rules` is not what it should be, a threshold lies outside its rule's range, or a rule does not suit
        the method.
    """
    if settings.method not in _METHODS:
        raise UserError(f"METHOD of a sweep must be one of {', '.join(_METHODS)}, not {settings.method!r}")
    if callable(rules) or not isinstance(rules, list | tuple) or not rules:
        raise UserError(f"RULES must be a list as in [(@token_v3, (0.0, 0.1)), @lossless], not {rules!r}")
    settings = dataclasses.replace(settings, more_rules=())  # one a program
    alone = dataclasses.replace(settings, method="verifier_only", rule=deferral.lossless, alpha=0.0)
    swept: dict[Any, Point] = {VERIFIER: Point(VERIFIER, "", "", "", None, alone)}
    for item in rules:
        rule, thresholds = (item, (None,)) if callable(item) else item if _is_pair(item) else (None, ())
        if not callable(rule):
            raise UserError(f"each of RULES is a rule and its thresholds, as in (@token_v3, (0.0, 0.1)), not {item!r}")
        plain = dataclasses.replace(settings, rule=rule, alpha=0.0).plain_rule if thresholds == (None,) else rule
        name = getattr(rule, "__name__", "rule")
        if thresholds == (None,) and plain is not deferral.lossless:
            raise UserError(f"{name} of RULES needs thresholds, as in (@{name}, (0.1, 0.3)): only lossless has none")
        identity = fingerprint.of_rule(rule)
        for alpha in thresholds:
            whole = isinstance(alpha, int) and not isinstance(alpha, bool)
            number = 0.0 if alpha is None else float(alpha) if whole else alpha
            for controller in controllers:
                own = dataclasses.replace(settings, rule=rule, alpha=number, lookahead=controller)
                assert isinstance(own.lookahead, DraftLength)
                steps = fingerprint.digest(fingerprint.of_code(own.lookahead))
                threshold = None if alpha is None else number
                swept[identity, alpha, steps] = Point(name, identity, own.lookahead.name, steps, threshold, own)
    return list(swept.values())


def _controllers(lookahead: Any) -> Sequence[Any]:
    if isinstance(lookahead, list | tuple) and not isinstance(lookahead, DraftLength):
        if not lookahead:
            raise UserError("LOOKAHEAD must be a draft-length controller, or a list of some, not an empty list")
        return lookahead
    return [lookahead]


def _is_pair(item: Any) -> bool:
    if not isinstance(item, list | tuple) or len(item) != 2:
        return False
    return isinstance(item[1], list | tuple) and len(item[1]) > 0


def read_prompts(path: str) -> list[dict[str, Any]]:
    """Returns the prompts with an `id` each; one that occurs again is dropped. Looks here, then in the repository."""
    if not isinstance(path, str) or not path:
        raise UserError("INPUT must be a JSONL file of prompts, in quotes, as in --gin.INPUT=\"'prompts.jsonl'\"")
    inside = pathlib.Path(__file__).resolve().parents[2] / path
    here = pathlib.Path(path).expanduser()
    entries = prompt_files.read(str(inside if inside.is_file() and not here.is_file() else here))
    return list({entry["prompt"]: {**entry, "id": fingerprint.digest(entry["prompt"])} for entry in entries}.values())


def _tasks(
    swept: Sequence[Point], entries: Sequence[dict], count: int, batch: int, repeats: int, done: Sequence[dict]
) -> list[TimedBatch]:
    """Returns what is left to run. Points stand side by side within a batch: what is compared was run together."""
    have = {summary.key(line) for line in done}
    tasks = []
    for repeat in range(repeats):
        for first in range(0, count, batch):
            chosen = tuple(range(first, min(first + batch, count)))
            ids = [entries[at]["id"] for at in chosen]
            unit = fingerprint.digest(ids)
            for point in swept:
                if not all((*point[:5], repeat, unit, each) in have for each in ids):
                    tasks.append(TimedBatch(point, repeat, chosen, unit))
    return tasks


def _timed(tasks: Sequence[TimedBatch], engines: dict[tuple, Engine], requests: Sequence[Query], err: Console):
    """Runs tasks in their order; yields each with its results. A program is compiled and warmed up at its first."""
    shapes: dict[tuple, Shapes] = {}
    began, columns = time.perf_counter(), (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    columns = (*columns, TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        bar = progress.add_task("", total=len(tasks))
        for number, task in enumerate(tasks):
            point = task.point
            engine, group = engines[point.program], [requests[at] for at in task.chosen]
            if point.program not in shapes:
                progress.update(bar, description=f"compiling {point.rule} {point.lookahead}")
                shapes[point.program] = prepare(engine, requests)
                short = [each._replace(max_new_tokens=min(_WARM_UP, each.max_new_tokens)) for each in group]
                complete(engine, short, shapes=shapes[point.program], together=True)
            label = point.rule if point.alpha is None else f"{point.rule} {point.alpha:g}"
            progress.update(bar, description=label)
            group = [each._replace(alpha=point.settings.alpha) for each in group]
            results = complete(engine, group, shapes=shapes[point.program], together=True)
            for at, result in zip(task.chosen, results, strict=True):
                if result.error:  # figures of half an answer would be wrong ones
                    raise UserError(f"prompt {at + 1} of {len(requests)} has no answer with {label}: {result.error}")
            yield task, results
            progress.advance(bar)
            last = number + 1 == len(tasks) or tasks[number + 1][1:] != task[1:]
            if last and not err.is_terminal:
                err.print(f"{number + 1} of {len(tasks)} done, {time.perf_counter() - began:.0f} s", highlight=False)


def _line(run: str, task: TimedBatch, entry: dict[str, Any], result: Result) -> dict[str, Any]:
    origins = {name: result.origins.count(name) for name in dict.fromkeys(result.origins)}
    return {
        "run": run,
        "rule": task.point.rule,
        "rule_id": task.point.rule_id,
        "lookahead": task.point.lookahead,
        "lookahead_id": task.point.lookahead_id,
        "alpha": task.point.alpha,
        "repeat": task.repeat,
        "unit": task.unit,
        "prompt_id": entry["id"],
        "input": {name: value for name, value in entry.items() if name != "id"},
        "text": result.text,
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


def _notes(about: dict[str, Any], rows: Sequence[Row], repeats: int) -> list[str]:
    platform, kind, count = about["device"]
    prompts = rows[0].prompts
    infinite = any(row.alpha is not None and math.isinf(row.alpha) for row in rows)
    return [
        f"{prompts} prompts, {repeats} repeats, batches of {about['batch_size']}, "
        f"temperature {about['temperature']:g}, at most {about['max_new_tokens']} new tokens, "
        f"drafts of at most {about['k_max']}; {about['dtype']} on {count} x {platform} ({kind}).",
        "Time is compared batch by batch with the verifier alone, run next to it in the same process; bars show the "
        "slowest and fastest repeat. Compiling is not counted."
        + (" Infinite thresholds stand in the table only." if infinite else ""),
    ]


def _by_category(lines: Sequence[dict], score: Callable | None) -> None:
    """Prints a table for each `category` of the prompts, where there are several."""
    categories = dict.fromkeys(line["input"].get("category") for line in lines)
    out, _ = terminal.consoles()
    for category in categories if len(categories) > 1 else ():
        of_it = (line for line in lines if line["input"].get("category") == category)
        out.print(f"\n{category or 'no category'}", style="bold", highlight=False)
        out.print(report.table(summary.summarise(of_it, score)))


def _tell(rows: list[Row], folder: pathlib.Path, title: str, notes: list[str], err: Console) -> None:
    out, _ = terminal.consoles()
    out.print(report.table(rows))
    report.write_csv(folder / "sweep.csv", rows)
    image = report.png(report.plot(rows))
    (folder / "sweep.png").write_bytes(image)
    (folder / "sweep.html").write_text(report.page(rows, image, title, notes), encoding="utf-8")
    err.print(f"written: {folder}/results.jsonl, sweep.csv, sweep.png, sweep.html", highlight=False, soft_wrap=True)
