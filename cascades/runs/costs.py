"""What a round is made of: the run function of `launch/costs.py`."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from rich import box
from rich.table import Table

from cascades import checks
from cascades.errors import UserError
from cascades.generation import (
    Engine,
    PairSpec,
    PromptSpec,
    Settings,
    Shapes,
    build,
    compilation_cache,
    load_pair,
    queries,
)
from cascades.generation.costs import Trial, knob, programs_for, timer
from cascades.generation.engine import slots_for
from cascades.lookahead import fixed
from cascades.runs import terminal
from cascades.runs.parts import timed_pass


class RoundTimes(NamedTuple):
    """One draft length k; seconds are medians.

    verify: the verifier pass of such a round, alone: the narrowest of those compiled that holds k + 1 tokens. parts:
    that and k drafter steps. round: the round itself, of the program that decodes. overhead: round / parts - 1, the
    median over repeats.
    pays: the least acceptance per draft at which drafting k tokens is faster than drafting none; None where none is.
    """

    k: int
    verify: float
    parts: float
    round: float
    overhead: float
    pays: float | None


class Outcome(NamedTuple):
    """draft: seconds of a drafter step, alone. rows: by draft length."""

    draft: float
    rows: list[RoundTimes]


def costs(
    *, pair: PairSpec, settings: Settings, prompt: str, prompts: PromptSpec = PromptSpec(), repeats: int = 7
) -> Outcome:
    """Times a round of every draft length next to its own drafter steps and verifier pass, in one process.

    Args:
      pair: the models. settings: how they decode; drafts are of every length up to `k_max`, whatever the lookahead.
      prompt: what every row holds. prompts: how it becomes tokens.
      repeats: how often everything is timed, in turn.

    Raises:
      UserError: any input that cannot be used, in one sentence.
    """
    rounds = {"lookahead": fixed(settings.k_max), "max_new_tokens": 2 * (settings.k_max + 1), "ignore_eos": True}
    settings = dataclasses.replace(settings, costs=None, **rounds)
    pair = pair.needed(settings)
    pair.layouts(settings.batch_size)
    checks.whole("REPEATS", repeats, 1)
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"PROMPT must be some text in quotes, as in --gin.PROMPT=\"'Why?'\", not {prompt!r}")
    out, err = terminal.consoles()
    compilation_cache()
    engine = build(load_pair(pair, chat_template=prompts.chat_template), settings)
    with err.status("compiling and timing"):
        outcome = measure(engine, prompt, repeats, prompts)
    out.print(f"a drafter step takes {1e3 * outcome.draft:.1f} ms, rows of {settings.batch_size}", highlight=False)
    out.print(table(outcome.rows))
    first = outcome.rows[0].round
    passes = [max((row.round - row.k * outcome.draft) / first, 1e-3) for row in outcome.rows]
    out.print(knob(outcome.draft / first, passes), highlight=False, soft_wrap=True)
    return outcome


def measure(engine: Engine, prompt: str, repeats: int, prompts: PromptSpec = PromptSpec()) -> Outcome:
    """Times passes and rounds in turn, `repeats` times."""
    settings, pair = engine.settings, engine.pair
    query = queries(engine, [prompt], raw=prompts.raw_prompt, control_tokens=prompts.control_tokens)[0]
    length = len(query.ids)
    shapes = Shapes(settings.batch_size, slots_for(engine, [length + query.max_new_tokens]))
    compiled = programs_for(engine, shapes, query.ids)
    time_round = timer(engine, compiled, length)
    lengths = range(settings.k_max + 1)
    steps = timed_pass(pair.drafter, shapes, length, 1) if pair.drafter else lambda: 0.0  # a look-up costs none
    widths = engine.programs.plan.passes
    alone = {width: timed_pass(pair.verifier, shapes, length, width) for width in widths}
    time_round(Trial(settings.k_max))  # as the passes alone, it has run once before it is timed
    draft, verify, rounds = [], [], []
    for _ in range(repeats):
        draft.append(steps())
        passes = {width: each() for width, each in alone.items()}
        verify.append([next(passes[width] for width in widths if width > k) for k in lengths])
        rounds.append([time_round(Trial(k))[0] for k in lengths])
    median = statistics.median
    rows = []
    for k in lengths:
        parts = [one[k] + k * step for one, step in zip(verify, draft, strict=True)]
        ratios = [whole[k] / part - 1 for whole, part in zip(rounds, parts, strict=True)]
        whole = median(each[k] for each in rounds)
        relative = whole / median(each[0] for each in rounds)
        rows.append(
            RoundTimes(k, median(v[k] for v in verify), median(parts), whole, median(ratios), break_even(k, relative))
        )
    return Outcome(median(draft), rows)


def break_even(k: int, cost: float) -> float | None:
    """Returns the acceptance a with (1 + a + … + a^k) / cost = 1, None where even a = 1 does not pay (or k is 0)."""
    if k == 0 or k + 1 < cost:
        return None
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if sum(middle**i for i in range(k + 1)) < cost:
            low = middle
        else:
            high = middle
    return high


def table(rows: Sequence[RoundTimes]) -> Table:
    """Returns a line per draft length."""
    drawn = Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("k", "verify ms", "sum of passes ms", "round ms", "loop", "pays from acceptance"):
        drawn.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        pays = "–" if row.pays is None else f"{row.pays:.2f}"
        cells = (f"{1e3 * row.verify:.1f}", f"{1e3 * row.parts:.1f}", f"{1e3 * row.round:.1f}", f"{row.overhead:+.1%}")
        drawn.add_row(str(row.k), *cells, pays)
    return drawn
