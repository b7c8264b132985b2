"""Finds the fastest setting that holds a floor, and certifies it: the run function of `launch/tune.py`."""

import contextlib
import dataclasses
import html
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from rich import box
from rich.console import Console
from rich.table import Table

from cascades import checks
from cascades.errors import UserError
from cascades.evaluation import latency, tuning
from cascades.evaluation.latency import PassCosts
from cascades.evaluation.summary import VERIFIER
from cascades.evaluation.tasks.contract import Metric
from cascades.evaluation.tuning import Evidence, Goal
from cascades.generation import (
    LoadedPair,
    PairSpec,
    PromptSpec,
    Settings,
    Shapes,
    build,
    compilation_cache,
    load_pair,
)
from cascades.generation.costs import programs_for
from cascades.generation.engine import slots_for
from cascades.lookahead import verifier_guided
from cascades.runs import counting, fingerprint, html_page, scoring, terminal
from cascades.runs.points import Point, controllers_of, points
from cascades.runs.work import Run, Work, appending, asked_of, begin

NAMED_MODULES = ("cascades.evaluation.scores", "cascades.evaluation.tasks")
FEWEST = 4 * tuning.LEAST  # prompts
SHARE = 0.4  # of them, for the search
_KNOBS = ("temperature", "top_k", "top_p", "min_p", "k_max", "coupling", "bonus", "strict")


class Outcome(NamedTuple):
    """What was found.

    chosen: None where nothing was certified. searched: what examples said of each point, its last stage counting.
    certified: the same of those that were tested, of which the last may have failed.
    """

    chosen: Point | None
    searched: dict[Point, Evidence]
    certified: dict[Point, Evidence]


def tune(
    *,
    pair: PairSpec,
    settings: Settings,
    output_dir: str,
    input: str,
    prompts: PromptSpec = PromptSpec(),
    rules: Any = (),
    lookahead: Any = verifier_guided,
    tasks: Any = (),
    score: Any = None,
    floor: Any = None,
    floor_score: Any = None,
    most_time: Any = None,
    confidence: Any = 0.95,
    latency_costs: Any = None,
    config_text: Callable[[], str] | None = None,
) -> Outcome:
    """Searches rules, thresholds and controllers on a part of the prompts, and certifies what holds on the others.

    Answers are kept in `results.jsonl`, so that a run that was killed goes on. `tuned.gin` gets the pair and the
    setting, for every launcher, and `tune.html` what was tried.

    Args:
      pair, settings, prompts, output_dir, rules, lookahead, score: see `sweep`. input, tasks: a file of prompts, or one
        task. Without a score the verifier's mean probability of a token is one.
      floor: share of the verifier's score that is kept at least. floor_score: the score that is reached at least.
        most_time: relative to the verifier alone, that is taken at most. One of the three is given.
      confidence: of the certification. latency_costs: (c, (v_0, …)) of the machine that it is for; None measures here.
      config_text: gives the whole configuration, which is saved beside the results.

    Raises:
      UserError: any input that cannot be used; or nothing is certified, in one sentence that says why.
    """
    goal = goal_of(floor, floor_score, most_time)
    checks.number("CONFIDENCE", confidence, 0.5, 0.9999)
    pair = pair.needed(settings)
    pair.layouts(settings.batch_size)
    if score is not None and (not callable(score) or getattr(score, "whole", False)):
        raise UserError(f"SCORE must be a function of a record and a text that scores single answers, not {score!r}")
    points(rules, controllers_of(lookahead), settings)  # what is wrong is told before a model is loaded
    given = None if latency_costs is None else _given(latency_costs, settings)
    asked, entries = asked_of(tasks, score, input)
    if len(asked) > 1:
        raise UserError(f"TASKS must be one task, whose score has a floor, not {len(asked)}")
    if len(entries) < FEWEST:
        raise UserError(f"search and certification need {FEWEST} prompts at least, and there are {len(entries)}")
    folder = checks.folder("OUTPUT_DIR", output_dir)
    out, err = terminal.consoles()
    compilation_cache()
    loaded = load_pair(pair, chat_template=prompts.chat_template)
    costs = given or _measured(folder, loaded, settings, err)
    settings = dataclasses.replace(settings, costs=(costs.draft, costs.verify))
    swept = points(rules, controllers_of(lookahead), settings)
    run = begin(pair, loaded, swept, settings, prompts, (asked, entries), folder, "tune", err)
    run = run._replace(lines=scoring.anew(run.lines, asked, err))
    metric = next(iter(asked[0].metrics), None)
    outcome = _search(goal, metric, swept, _Answers(run, err), len(entries), costs, float(confidence), settings.seed)
    if config_text:
        (folder / f"{run.name}.config.gin").write_text(config_text(), encoding="utf-8")
    _tell(outcome, goal, metric, confidence, costs, folder, out)
    if outcome.chosen is None:
        raise UserError(_why(outcome, goal, confidence))
    text = _gin(pair, outcome.chosen, goal, outcome.certified[outcome.chosen], confidence)
    (folder / "tuned.gin").write_text(text, encoding="utf-8")
    err.print(f"written: {folder}/tuned.gin, tune.html, results.jsonl", highlight=False, soft_wrap=True)
    return outcome


class _Answers:
    """Answers of points to examples: those that are kept, and else decoded and appended to a file."""

    def __init__(self, run: Run, err: Console):
        self._run, self._err = run, err

    def of(self, swept: Sequence[Point], places: Sequence[int]) -> dict[Point, list[dict[str, Any]]]:
        """Returns the lines of each point, in the order of `places`."""
        run, whole = self._run, self._run.work
        part = Work([whole.entries[at] for at in places], [whole.requests[at] for at in places], whole.tasks)
        with appending(run) as keep:
            counting.count(swept, run.engines, part, run.lines, keep, self._err)
        fields = "rule", "rule_id", "lookahead", "lookahead_id", "alpha", "temperature"
        known = {(*(line[name] for name in fields), line["prompt_id"]): line for line in run.lines}
        found = {point: [known[*point[:6], entry["id"]] for entry in part.entries] for point in swept}
        for point, lines in found.items():
            bad = next((line["prompt_id"] for line in lines if line["scores"] is None), None)
            if bad is not None:  # a floor cannot be certified of some of the answers
                raise UserError(
                    f"the answer to {bad} with {point.label} has no score: mend SCORE and run the same command again"
                )
        return found


def _search(
    goal: Goal,
    metric: Metric | None,
    swept: Sequence[Point],
    answers: _Answers,
    count: int,
    costs: PassCosts,
    confidence: float,
    seed: int,
) -> Outcome:
    first, second = tuning.split(count, SHARE, seed)
    alone = next(point for point in swept if point.rule == VERIFIER)
    left = [point for point in swept if point is not alone]
    searched: dict[Point, Evidence] = {}
    certified: dict[Point, Evidence] = {}

    def judged(candidates: Sequence[Point], places: Sequence[int]) -> dict[Point, Evidence]:
        lines = answers.of([alone, *candidates], places)
        base = lines.pop(alone)
        return {
            point: tuning.evidence(goal, metric, own, base, costs, confidence, seed) for point, own in lines.items()
        }

    sizes = tuning.stages(len(first))
    for size in sizes:
        found = judged(left, first[:size])
        searched |= found
        if size != sizes[-1]:
            left = tuning.better(goal, found, len(second), confidence)
    for point in tuning.order({point: searched[point] for point in left}, len(second), confidence):
        certified |= judged([point], second)
        if not certified[point].holds:
            break
    holding = {point: each for point, each in certified.items() if each.holds}
    return Outcome(tuning.best(goal, holding, searched), searched, certified)


def goal_of(floor: Any, floor_score: Any, most_time: Any) -> Goal:
    """Returns what has to hold, checked.

    Raises:
      UserError: none or several are given, or a figure cannot be.
    """
    given = {"FLOOR": floor, "FLOOR_SCORE": floor_score, "MOST_TIME": most_time}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) != 1:
        raise UserError(
            "one of FLOOR (a share of the verifier's score), FLOOR_SCORE and MOST_TIME has to hold, and "
            f"{' and '.join(given) or 'none'} {'are' if len(given) > 1 else 'is'} given: set one, as in --floor=0.98"
        )
    [(name, value)] = given.items()
    low, high = {"FLOOR": (0.0, 10.0), "FLOOR_SCORE": (-1e9, 1e9), "MOST_TIME": (0.0, 10.0)}[name]
    checks.number(name, value, low, high)
    return Goal(*(None if value is None else float(value) for value in (floor, floor_score, most_time)))


def _given(costs: Any, settings: Settings) -> PassCosts:
    told = latency.pass_costs("this machine", costs)
    if len(told.verify) <= settings.k_max:
        raise UserError(f"LATENCY needs v_0 to v_{settings.k_max}, as K_MAX is {settings.k_max}: give a pass for each")
    return told._replace(verify=told.verify[: settings.k_max + 1])


def _measured(folder: pathlib.Path, pair: LoadedPair, settings: Settings, err: Console) -> PassCosts:
    """Returns what passes of one row cost here, or did when the folder's run began: how long drafts are hangs on it."""
    told = [pair.verifier.name, pair.drafts, settings.k_max, settings.coupling, jax.devices()[0].device_kind]
    file = folder / f"{fingerprint.digest(told)}.costs.json"
    with contextlib.suppress(OSError, ValueError):
        return latency.pass_costs(str(file), json.loads(file.read_text(encoding="utf-8")))
    own = dataclasses.replace(settings, lookahead=verifier_guided, costs=None, batch_size=1)
    with err.status("measuring passes"):
        engine = build(pair, own)
        compiled = programs_for(engine, Shapes(1, slots_for(engine, [settings.k_max + 64])), tuple(range(1, 33)))
    costs = PassCosts(float(compiled.costs.draft), tuple(float(each) for each in compiled.costs.verify))
    file.write_text(json.dumps(costs) + "\n", encoding="utf-8")
    return costs


def _why(outcome: Outcome, goal: Goal, confidence: float) -> str:
    known = (outcome.certified or outcome.searched).values()
    most = max(each.examples for each in known)  # of those that were dropped early little is known
    nearest = max((each for each in known if each.examples == most), key=lambda each: each.slack)
    what = f"no setting is certified to hold {goal} at a confidence of {confidence:g}"
    if outcome.certified and nearest.needed is not None and math.isfinite(nearest.needed):
        return (
            f"{what}: the safest seems to, but {nearest.examples} prompts are too few to be sure, and about "
            f"{nearest.needed} would do, beside those of the search"
        )
    return f"{what}: the nearest misses it by {max(-nearest.slack, 0.0):.3g} on {nearest.examples} prompts"


def _gin(pair: PairSpec, point: Point, goal: Goal, found: Evidence, confidence: float) -> str:
    """Returns a file of a pair with the setting that was found, which every launcher takes."""
    settings, knobs = point.settings, {}
    for prefix, model in (("", pair.verifier), ("DRAFTER_", pair.drafter or pair.verifier)):
        knobs["DRAFTER" if prefix else "VERIFIER"] = model.uri
        knobs["DRAFTER_PRESET" if prefix else "VERIFIER_PRESET"] = model.preset
        knobs |= {f"{prefix}{name.upper()}": getattr(model, name) for name in ("weights", "cache", "strategy")}
    knobs |= {name.upper(): getattr(pair, name) for name in ("dtype", "mesh", "kernels")}
    lines = [f"{name} = {value!r}" for name, value in knobs.items()]
    lines.append(f"RULE = @{point.rule}")
    if point.alpha is not None:
        lines.append(f"ALPHA = {point.alpha!r}")
    controller, _, argument = point.lookahead.partition("(")
    lines.append(f"LOOKAHEAD = @{controller}()")
    if controller == "fixed":
        lines.append(f"fixed.k = {argument.rstrip(')')}")
    lines += [f"{name.upper()} = {getattr(settings, name)!r}" for name in _KNOBS]
    head = (
        f"# {point.label}, as launch/tune.py found it: {goal}, certified at a confidence of {confidence:g}.\n#\n"
        f"# On {found.examples} prompts that the search did not see: score {found.score:.4g}, the verifier's "
        f"{found.base:.4g}; {found.time:.3g} of its time, by what passes cost.\n\n"
    )
    return head + "\n".join(lines) + "\n"


def _tell(
    outcome: Outcome,
    goal: Goal,
    metric: Metric | None,
    confidence: float,
    costs: PassCosts,
    folder: pathlib.Path,
    out: Console,
) -> None:
    """Prints what was certified, and writes a page of all that was tried."""
    name = metric.name if metric else "likelihood"
    rows = [*((point, each, True) for point, each in outcome.certified.items())]
    rows += [(point, each, False) for point, each in outcome.searched.items()]
    drawn = Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    head = ("part", "rule", "lookahead", name, "verifier", "time", "bound", "")
    several = len({point.lookahead for point, _, _ in rows}) > 1
    shown = [at for at, heading in enumerate(head) if heading != "part" and (several or heading != "lookahead")]
    for heading in (head[at] for at in shown):
        drawn.add_column(heading, justify="left" if heading in ("part", "rule", "lookahead", "") else "right")
    body = []
    for point, each, tested in rows:
        verdict = ("chosen" if point == outcome.chosen else "holds" if each.holds else "fails") if tested else ""
        cells = [
            f"{'certified' if tested else 'search'} on {each.examples}",
            point.label,
            point.lookahead,
            f"{each.score:.4g}",
            f"{each.base:.4g}",
            f"{each.time:.2f}x",
            f"{each.bound:+.3g}",
            verdict,
        ]
        body.append("".join(f"<td>{html.escape(cell)}</td>" for cell in cells))
        if tested:
            drawn.add_row(*(cells[at] for at in shown))
    if outcome.certified:
        out.print(drawn)
    passes = ", ".join(f"{each:.3f}" for each in costs.verify)
    paragraphs = [
        f"Wanted: {goal}. The bound is what the setting holds it by at least, at a confidence of {confidence:g}: by a "
        "paired bootstrap over prompts, and no better than if as many more answers had failed as may stay unseen.",
        f"Times are counts of passes, each at its cost: a drafter step {costs.draft:.3f}, verifier passes {passes} of "
        "one over a single token; prefill is left out.",
    ]
    if metric:
        paragraphs.append(f"{name}: {metric.definition}")
    table = html_page.table([f"<th>{html.escape(each)}</th>" for each in head], body)
    (folder / "tune.html").write_text(html_page.page("What was tried", paragraphs, table), encoding="utf-8")
