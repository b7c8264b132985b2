"""Rules and thresholds over prompts, against the verifier alone: the run function of `launch/sweep.py`."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from cascades import checks
from cascades import rules as deferral
from cascades.errors import UserError
from cascades.evaluation import counts, latency
from cascades.evaluation.counts import CountRow
from cascades.evaluation.summary import Row
from cascades.generation import (
    PairSpec,
    PromptSpec,
    Settings,
    compilation_cache,
    load_pair,
)
from cascades.lookahead import verifier_guided
from cascades.runs import clock_report, count_report, counting, report, scoring, spec_bench, terminal, timing
from cascades.runs.points import Point, controllers_of, points
from cascades.runs.work import Run, appending, asked_of, begin, line

NAMED_MODULES = ("cascades.evaluation.scores", "cascades.evaluation.tasks")


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
    spec_bench_files: Any = False,
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
      spec_bench_files: of a clock run of Spec-Bench's questions, whether it is also written as its scripts read it.
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
    costs = costs_of(latency_costs, settings)
    checks.switch("SPEC_BENCH_FILES", spec_bench_files)
    report.need_matplotlib()
    asked = asked_of(tasks, score, input)
    if spec_bench_files:
        spec_bench.check(asked[0], clock, settings)
    folder = checks.folder("OUTPUT_DIR", output_dir)
    _, err = terminal.consoles()
    compilation_cache()
    loaded = load_pair(pair, chat_template=prompts.chat_template)
    run = begin(pair, loaded, swept, settings, prompts, asked, folder, "clock" if clock else "count", err)
    if not clock:
        run = run._replace(lines=scoring.anew(run.lines, run.work.tasks, err))
    try:
        with appending(run) as keep:
            if clock:
                _clock(swept, run, settings.batch_size, repeats, keep, err)
            else:
                counting.count(swept, run.engines, run.work, run.lines, keep, err)
    finally:
        if config_text:
            (folder / f"{run.name}.config.gin").write_text(config_text(), encoding="utf-8")
        assert pair.drafter is not None  # every method of a sweep needs one
        title = f"{short(pair.drafter.uri)} -> {short(pair.verifier.uri)}"
        if clock:
            heading = f"{settings.method}: {title}"
            given = run.lines, run.work.tasks, score, folder, heading, run.about, repeats, err
            rows = clock_report.tell(*given)  # pyright: ignore[reportArgumentType]
        else:
            rows = counts.summarise(run.lines, run.work.tasks, costs)
            count_report.tell(rows, run.lines, run.work.tasks, folder, title, run.about, err)
    if spec_bench_files:
        spec_bench.write(folder, run.lines, run.work.entries)
        err.print(f"written: {folder}/model_answer_temp*_run_*", highlight=False, soft_wrap=True)
    return rows


def _clock(swept: Sequence[Point], run: Run, batch: int, repeats: int, keep: scoring.Keep, err: Console) -> None:
    """Hands the lines of a clock run that are not there yet to `keep`."""
    entries = run.work.entries
    wanted = timing.batches(swept, entries, batch, repeats, run.lines)
    for each, results in timing.timed(wanted, run.engines, run.work.requests, err):
        for at, result in zip(each.chosen, results, strict=True):
            keep({"repeat": each.repeat, "unit": each.unit, **line(each.point, entries[at], result)})


def costs_of(given: Any, settings: Settings) -> dict[str, latency.PassCosts]:
    """Returns what LATENCY says, by the name of each machine.

    Raises:
      UserError: it is no such thing, or holds no pass over as many drafts as there may be.
    """
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


def short(uri: Any) -> str:
    """The last part of a URI, without its checksum; ngram://3 stays as it is."""
    return uri if "ngram://" in uri else uri.partition("#")[0].rstrip("/").rpartition("/")[2] or uri
