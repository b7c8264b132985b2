"""Passes, choices, rounds and whole generations beside the machine's memory: the run function of `launch/bench.py`."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from cascades import checks
from cascades import rules as deferral
from cascades.errors import UserError
from cascades.generation import (
    Engine,
    PairSpec,
    PromptSpec,
    Query,
    Settings,
    Shapes,
    build,
    compilation_cache,
    complete,
    default_dtype,
    load_pair,
    prepare,
    records,
)
from cascades.generation.costs import Trial, programs_for, timer
from cascades.generation.engine import part
from cascades.runs import bench_peers, bench_report, machine, parts, terminal
from cascades.runs.bench_lines import ALONE, DRAWN, Answer, generations, lines_of
from cascades.runs.bench_peers import Peer
from cascades.runs.parts import Part, Timer
from cascades.runs.sweep import short
from cascades.runs.work import read_prompts, requests_of

_WARM_UP = 4  # tokens that a program decodes before it is timed


def bench(
    *,
    pair: PairSpec,
    settings: Settings,
    input: str,
    prompts: PromptSpec = PromptSpec(),
    texts: int = 5,
    rules: Any = (deferral.lossless, deferral.token_v3),
    repeats: int = 5,
    transformers: bool = False,
    output: str | None = None,
    page: str | None = None,
) -> list[dict[str, Any]]:
    """Times what a round is made of, rounds, and whole generations, in turn in one process, `repeats` times.

    Args:
      pair: the models. settings: how they decode. prompts: how a text becomes a prompt.
      input: a JSONL file of prompts. texts: how many of them are decoded, spread evenly over the file.
      rules: whose choice is timed alone, beside the passes.
      transformers: whether the package of that name decodes the same prompts too.
      output: from the command line, a JSONL file that gets a line for everything that was timed. page: likewise, an
        HTML file of the results.

    Returns:
      The lines.

    Raises:
      UserError: any input that cannot be used, in one sentence.
    """
    if settings.method != "speculative":
        raise UserError(
            f"METHOD of a bench must be 'speculative', not {settings.method!r}: the verifier alone is beside"
        )
    pair = pair.needed(settings)
    pair.layouts(settings.batch_size)
    checks.whole("REPEATS", repeats, 1)
    checks.whole("TEXTS", texts, 1)
    if callable(rules) or not isinstance(rules, list | tuple) or not rules:
        raise UserError(f"RULES must be a list of rules, as in [@lossless, @token_v3], not {rules!r}")
    for rule in rules:
        dataclasses.replace(settings, rule=rule, more_rules=(), alpha=0.0)  # which checks it
    checks.switch("TRANSFORMERS", transformers)
    if transformers:
        bench_peers.check(pair, settings)
    for path in (output, page):
        if path is not None:
            records.check_writable(path)
    entries = read_prompts(input)
    chosen = [entries[at * len(entries) // texts]["prompt"] for at in range(texts)] if texts < len(entries) else None
    out, err = terminal.consoles()
    compilation_cache()
    engine = build(load_pair(pair, chat_template=prompts.chat_template), settings)
    requests = requests_of([engine], chosen or [each["prompt"] for each in entries], prompts, settings)
    peers, remarks = bench_peers.load(engine, pair) if transformers else ([], [])
    for remark in remarks:
        err.print(remark, highlight=False, soft_wrap=True)
    with err.status("compiling and timing"):
        shapes = prepare(engine, requests)
        timed = parts_of(engine, shapes, requests, rules)
        answering = {ALONE: _ours(part(engine, "verifier_only"), requests)}
        answering[_name(settings)] = _ours(engine, requests)
        answering |= {peer.name: _theirs(peer) for peer in peers}
        seconds, answers = measure(timed, answering, requests, settings.batch_size, repeats, err)
    where = machine.described(default_dtype(pair.dtype))
    about = {"verifier": short(pair.verifier.uri), "drafter": short(engine.pair.drafts), "batch": shapes.batch}
    about |= {"slots": shapes.slots, "repeats": repeats, **where}
    tokenizer = engine.pair.verifier.tokenizer
    lines = lines_of(timed, seconds) + generations(answers, lambda ids: tokenizer.decode(list(ids)))
    lines = [line | about for line in lines]
    bench_report.show(lines, out)
    if output is not None:
        with records.open_append(output) as file:
            for line in lines:
                records.append(file, line)
    if page is not None:
        pathlib.Path(page).expanduser().write_text(bench_report.page(lines), encoding="utf-8")
    return lines


def parts_of(engine: Engine, shapes: Shapes, requests: Sequence[Query], rules: Sequence[Callable]) -> list[Part]:
    """Returns all that is timed beside whole generations, each compiled; passes stand in the middle of an answer."""
    settings, pair, plan = engine.settings, engine.pair, engine.programs.plan
    longest = max(requests, key=lambda request: len(request.ids))
    compiled = programs_for(engine, shapes, longest.ids)
    length = min(len(longest.ids) + longest.max_new_tokens // 2, shapes.slots - plan.k_max - 1)
    found: list[Part] = []

    def add(kind: str, name: str, run: Timer, warm: bool = True, **facts: Any) -> None:
        found.append(Part(kind, name, run, facts, warm))

    models = [(f"verifier, {width} token{'s'[: width > 1]}", pair.verifier, shapes, width) for width in plan.passes]
    if pair.drafter:
        room = min(shapes.slots, pair.drafter.model.context_length)
        models.append(("drafter, 1 token", pair.drafter, shapes._replace(slots=room), 1))
    weights = parts.least_bytes(pair.verifier, shapes, 0, 0)
    for name, moved, run in machine.memory(machine.beyond_caches(), weights):
        add("memory", name, run, warm=False, bytes=moved)
    for name, language, there, width in models:
        held = max(min(length, there.slots - width), 0)
        least = parts.least_bytes(language, there, held, width)
        facts = {"model": name.partition(",")[0], "width": width, "held": held}
        add("pass", name, parts.timed_pass(language, there, held, width), bytes=least, **facts)
        add("products", name, parts.timed_products(language, there.batch, width), **facts)
    if pair.drafter:
        add("choice", DRAWN, parts.timed_draw(engine, compiled))
    own = settings.rule_names[0]
    judged = {(own, width - 1): settings.rule for width in plan.passes}
    judged |= {(getattr(rule, "__name__", "rule"), plan.k_max): rule for rule in rules}
    for (name, k), rule in judged.items():
        add("choice", f"{name} judges {k}", parts.timed_judge(engine, compiled, rule, k), rule=name, drafts=k)
    time_round = timer(engine, compiled, length)
    for width in plan.passes:
        k = width - 1
        add("round", f"k = {k}", lambda k=k: time_round(Trial(k))[0], drafts=k, width=width, rule=own)
    return found


def measure(
    timed: Sequence[Part],
    answering: dict[str, Callable[[Sequence[Query]], list[Answer]]],
    requests: Sequence[Query],
    batch: int,
    repeats: int,
    err: Console,
) -> tuple[list[list[float]], dict[str, list[list[Answer]]]]:
    """Runs everything in turn, `repeats` times; those that answer take turns at every batch of requests.

    Returns:
      The seconds of each part, and the answers of each that answers, both by repeat.
    """
    seconds: list[list[float]] = [[] for _ in timed]
    answers: dict[str, list[list[Answer]]] = {name: [] for name in answering}
    for name in answering:  # a first call takes longer
        answering[name]([each._replace(max_new_tokens=min(_WARM_UP, each.max_new_tokens)) for each in requests[:batch]])
    began = time.perf_counter()
    for repeat in range(repeats):
        for each, taken in zip(timed, seconds, strict=True):
            if each.warm:  # as in a loop, where the same weights were just read
                each.run()
            taken.append(each.run())
        for told in answers.values():
            told.append([])
        for first in range(0, len(requests), batch):
            for name, answer in answering.items():
                answers[name][-1] += answer(requests[first : first + batch])
        err.print(f"{repeat + 1} of {repeats} done, {time.perf_counter() - began:.0f} s", highlight=False)
    return seconds, answers


def _name(settings: Settings) -> str:
    name = getattr(settings.rule, "__name__", "rule")
    return name if settings.plain_rule is deferral.lossless else f"{name}, alpha {settings.alpha:g}"


def _ours(engine: Engine, requests: Sequence[Query]) -> Callable[[Sequence[Query]], list[Answer]]:
    """Decodes a batch with the programs that serve all of `requests`. A batch shares its time among its rows."""
    shapes = prepare(engine, requests)

    def answer(batch: Sequence[Query]) -> list[Answer]:
        given = [each._replace(alpha=engine.settings.alpha) for each in batch]
        results = complete(engine, given, shapes=shapes, together=True)
        for result in results:
            if result.error:
                raise UserError(f"a prompt has no whole answer, and figures of half of one mislead: {result.error}")
        wall, prefill = (max(result.stats[name] for result in results) for name in ("wall_s", "prefill_s"))
        return [
            Answer(
                tuple(result.token_ids),
                prefill_s=prefill / len(results),
                decode_s=(wall - prefill) / len(results),
                calls=result.stats["verifier_calls"],
            )
            for result in results
        ]

    return answer


def _theirs(peer: Peer) -> Callable[[Sequence[Query]], list[Answer]]:
    return lambda batch: [peer.answer(each) for each in batch]
