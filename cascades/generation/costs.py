"""What a round costs: measured on the program that runs, and corrected while it does."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from cascades import hosts
from cascades.cache import rewind
from cascades.decoding import Plan, State
from cascades.generation import clock, memory
from cascades.generation import engine as engines
from cascades.generation.engine import Compiled, Engine, Shapes
from cascades.models.attention import attended
from cascades.typing import Array

_REPEATS = 5  # a disturbance that begins and ends tears two of them at most, and three others tell what is so
_FEWEST, _BUDGET = 3, 2.0  # seconds, of a newcomer's first command: then three have to do, and the clock does the rest
_MOST_OF_A_ROUND = 0.9  # that a call takes besides its passes: more is noise, and passes take some time
_WORTH_TELLING = 0.01  # by how much a round's cost has to differ before the lookahead is told

Timer = Callable[["Trial"], tuple[float, np.ndarray]]


class Trial(NamedTuple):
    """A round to time: of how many drafts, how many tokens the drafter lacks before it, behind a long text or not.

    rounds: 0 is a call of the program in which no round runs.
    """

    drafts: int
    lacks: int = 1
    long: bool = False
    rounds: int = 1


def programs_for(engine: Engine, shapes: Shapes, ids: tuple[int, ...]) -> Compiled:
    """Returns programs compiled for prompts like `ids`; costs, if the lookahead wants any, are recalled or measured."""
    fresh = shapes not in engine.compiled
    compiled = engines.compile_for(engine, shapes, len(ids))
    plan, settings = engine.programs.plan, engine.settings
    if fresh and settings.method == "speculative":
        if settings.costs:
            compiled.belief = clock.given(compiled.costs, plan.passes)
        elif plan.lookahead.timed:
            began = time.perf_counter()
            compiled.belief = _believed(engine, compiled, len(ids))
            compiled.costs = clock.costs(compiled.belief, plan.passes, reach_of(compiled, len(ids)))
            compiled.seconds += time.perf_counter() - began
    return compiled


def _believed(engine: Engine, compiled: Compiled, length: int) -> clock.Belief:
    """What an earlier run knew of passes, or what is measured; either way each pass has run once behind it."""
    plan, fewest = engine.programs.plan, attended(1, compiled.shapes.slots)
    short = min(length, _room(engine, compiled, fewest))  # where passes attend to the fewest slots
    long = _room(engine, compiled, compiled.shapes.slots) > fewest
    time_round, known = timer(engine, compiled, short), memory.recall(engine, compiled)
    warm_up(plan, time_round, long)
    if known is not None:
        return known
    seconds, call = measure_costs(plan, time_round, long)
    *agreed, call = np.asarray(hosts.agreed(np.append(seconds, call).astype(np.float32)), np.float64).tolist()
    return clock.measured(np.asarray(agreed), call)


def reach_of(compiled: Compiled, length: int) -> float:
    """Returns how far passes attend where the longest row holds so many tokens, see `clock.reach`."""
    return clock.reach(attended(length, compiled.shapes.slots))


def trials(plan: Plan, long: bool = False) -> list[Trial]:
    """Returns a call in which no round runs, and rounds whose times tell what each pass takes.

    The longest draft of each width; of the width that holds the most lengths the shortest too, which differs from the
    longest by drafter steps alone; and that once more behind a token that the drafter had missed. Where no width holds
    two lengths (drafts of one token), a drafter step is what reads the last of one token more than one or two passes
    catch up with. If `long`, the longest draft behind a long text too.
    """
    spans = list(zip((0, *plan.passes), plan.passes, strict=False))
    low, high = max(((below, width - 1) for below, width in spans[1:]), key=lambda span: span[1] - span[0])
    step = [Trial(low)] if low < high else [Trial(high, plan.catch_up(1) + 1)]
    far = [Trial(plan.k_max, long=True)] if long else []
    return [Trial(0, rounds=0), *(Trial(width - 1) for width in plan.passes), *step, Trial(low, 2), *far]


def warm_up(plan: Plan, time_round: Timer, long: bool = False) -> None:
    """Runs each pass once: XLA on CPUs prepares products at their first call, and memory is touched for the first time.

    The first request would wait for it otherwise.
    """
    for trial in (*trials(plan, long), *(Trial(width - 1, long=True) for width in plan.passes if long)):
        time_round(trial)


def measure_costs(plan: Plan, time_round: Timer, long: bool = False) -> tuple[np.ndarray, float]:
    """Returns the seconds of each kind of pass, see `clock.ran`, and of a call without any, by timing rounds in turn.

    Each repeat takes all of them, in turn from the first to the last and back. They are compared within a repeat, and
    of the ratios of all repeats the medians count, so that nothing hangs on when the machine was busy. `warm_up` is to
    come before.
    """
    each = trials(plan, long)
    times: list[np.ndarray] = []
    ran = np.zeros((len(each), len(plan.passes) + clock.OTHERS))
    most = _FEWEST if hosts.several() else _REPEATS  # hosts whose clocks differ must run the same
    while len(times) < _FEWEST or (len(times) < most and np.sum(times) < _BUDGET):
        times.append(np.zeros(len(each)))
        order = range(len(each)) if len(times) % 2 else reversed(range(len(each)))
        for at in order:
            times[-1][at], ran[at] = time_round(each[at])
    seconds = np.stack(times)
    scale = np.median(seconds, axis=1, keepdims=True)
    call, *took = (np.median(seconds / scale, axis=0) * np.median(scale)).tolist()
    call = min(call, _MOST_OF_A_ROUND * min(took))
    return _of_passes(np.asarray(took) - call, ran[1:]), call


def _of_passes(took: np.ndarray, ran: np.ndarray) -> np.ndarray:
    """Solves `ran @ seconds = took`, in which no pass takes less than nothing nor a wide one less than the first.

    Args:
      took: of each trial. ran: passes of each kind, by trial.
    """
    widths = ran.shape[1] - clock.OTHERS
    *_, draft, catch_up, further = np.linalg.lstsq(ran, took, rcond=None)[0]
    more = ran[1:widths, widths] - ran[0, widths]
    # What the noise says beyond this would make a wide pass cheaper than a narrow one.
    most = min(((took[1:widths] - took[0]) / np.maximum(more, 1)).tolist(), default=np.inf)
    draft, catch_up = float(np.clip(draft, 0.0, max(most, 0.0))), max(float(catch_up), 0.0)
    verify = clock.rising(took[:widths] - ran[:widths, widths:-1] @ [draft, catch_up], np.ones(widths))
    return np.array([*np.maximum(verify, 0.01 * took[0]), draft, catch_up, max(float(further), 0.0)])


def timer(engine: Engine, compiled: Compiled, length: int) -> Timer:
    """Returns a function that times a round behind a text of `length` tokens, and tells what ran.

    No model has read that text, since what passes take does not hang on it. Its tokens do not repeat, so that a look-up
    finds nothing there. It is cut to what leaves room for a round in the rows and in the drafter's own context; where a
    trial is `long`, to no less.
    """
    plan, slots = engine.programs.plan, compiled.shapes.slots
    room = max(_room(engine, compiled, slots), 1)
    starts = max(min(length, room), 1), room
    state = engines.vacant(engine, compiled)
    text = np.broadcast_to(np.arange(slots, dtype=np.int32) % plan.vocab_size, state.tokens.shape)
    tokens = jax.make_array_from_callback(text.shape, state.tokens.sharding, lambda index: text[index])
    held: list[State] = [state._replace(tokens=tokens)]
    nothing = np.zeros((compiled.shapes.batch,), bool)

    def time_round(trial: Trial) -> tuple[float, np.ndarray]:
        start = starts[trial.long]
        state = jax.block_until_ready(_again(held[0], start, trial.lacks, slots))
        before = clock.kinds(hosts.whole(state.clock))
        began = time.perf_counter()
        state = engines.proceed(engine, compiled, state, nothing, trial.rounds, trial.drafts)
        held[0] = jax.block_until_ready(state)
        seconds = time.perf_counter() - began
        counts, reach = clock.kinds(hosts.whole(held[0].clock)) - before, reach_of(compiled, start)
        compiled.reached |= _reached(plan, counts, reach)
        return seconds, clock.ran(counts, plan.passes, reach)

    return time_round


def _room(engine: Engine, compiled: Compiled, most: int) -> int:
    """Returns the longest text behind which there is room for a round in rows of `most` tokens."""
    drafter = engine.programs.plan.drafter
    return min(most, drafter.context_length if drafter else most) - engine.programs.plan.k_max - 1


def _again(state: State, start: int, lacks: int, slots: int) -> State:
    """Whatever the text did, every row takes part again and stands at `start`. Nothing is compiled."""

    def full(like: Array, value: int) -> Array:
        values = np.full(like.shape, value, like.dtype)
        return jax.make_array_from_callback(like.shape, like.sharding, lambda index: values[index])

    drafter, read = state.drafter_cache, max(start - lacks, 0)
    return state._replace(
        finish=full(state.finish, 0),
        silent=full(state.silent, 0),
        length=full(state.length, start),
        limit=full(state.limit, slots),
        verifier_cache=rewind(state.verifier_cache, full(state.verifier_cache.length, start - 1)),
        drafter_cache=drafter and rewind(drafter, full(drafter.length, read)),
    )


def trial(engine: Engine, compiled: Compiled, reach: float) -> int | None:
    """Returns how many drafts the next round should have, so that something is learnt; see `clock.trial`. Or None."""
    passes, belief = engine.programs.plan.passes, compiled.belief
    if belief is None or hosts.several():
        return None
    drafts = clock.trial(belief, passes, reach)
    if drafts is not None:
        compiled.belief = clock.tried(belief, passes, drafts)
    return drafts


def learn(engine: Engine, compiled: Compiled, counts: np.ndarray, reach: float, seconds: float) -> None:
    """Learns from a call that ran passes `counts` in `seconds`, behind texts that reach so far.

    The first call of each pass so far takes longer, so that it teaches nothing. Several hosts, which must take the same
    steps, learn nothing at all.
    """
    plan = engine.programs.plan
    if compiled.belief is None or hosts.several() or not counts.any():
        return
    reached = _reached(plan, counts, reach)
    if reached <= compiled.reached:
        compiled.belief = clock.clocked(compiled.belief, clock.ran(counts, plan.passes, reach), seconds)
    compiled.reached |= reached


def _reached(plan: Plan, counts: np.ndarray, reach: float) -> set[tuple[float, int]]:
    return {(reach, at) for at in range(len(plan.passes)) if counts[at]}


def corrected(engine: Engine, compiled: Compiled, state: State, reach: float) -> State:
    """Returns the state, whose lookahead knows of costs that have become others. Those that the user gave stay."""
    belief = compiled.belief
    if belief is None or belief.given or hosts.several():
        return state
    plan = engine.programs.plan
    costs = clock.costs(belief, plan.passes, reach)
    if clock.moved(costs, compiled.costs) < _WORTH_TELLING:
        return state
    compiled.costs = costs

    def placed(new: Any, old: Any) -> Any:
        return old if new is old else jax.device_put(np.asarray(new), old.sharding)

    guide = plan.lookahead.recost(state.lookahead, costs)
    return state._replace(lookahead=jax.tree.map(placed, guide, state.lookahead))


def told(compiled: Compiled) -> dict[str, Any] | None:
    """Returns the costs that the lookahead goes by, for a record; None where there are none.

    draft, catch_up, verify: see `Costs`. unit_s: seconds of a verifier pass over one token, None where none was
    clocked. given: by the user.
    """
    if compiled.belief is None:
        return None
    costs, unit = compiled.costs, compiled.belief.unit
    return {
        "draft": round(float(costs.draft), 4),
        "catch_up": round(float(costs.catch_up), 4),
        "verify": [round(each, 4) for each in np.asarray(costs.verify).tolist()],
        "unit_s": None if unit is None else round(unit, 6),
        "given": compiled.belief.given,
    }


def knob(draft: float, verify: Sequence[float], catch_up: float | None = None) -> str:
    """Returns the words of a command line that give these costs to a run."""
    figures = f"{draft:.3f}, ({', '.join(f'{each:.3f}' for each in verify)})"
    return f'--gin.COSTS="({figures}{"" if catch_up is None else f", {catch_up:.3f}"})"'
