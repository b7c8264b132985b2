"""The shapes of a run and the programs compiled for them; what a round costs, measured on the program that runs."""

import concurrent.futures
import time
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cascades import hosts, lookahead
from cascades.cache import rewind
from cascades.decoding import (
    FREE,
    Origin,
    Plan,
    Programs,
    Request,
    State,
    advance_sequential,
    compile_plan,
)
from cascades.decoding.round import advance
from cascades.errors import UserError
from cascades.generation.pair import LoadedModel, Pair, shared_vocabulary
from cascades.generation.settings import Settings
from cascades.lookahead import Costs, given_costs
from cascades.rules import lossless
from cascades.typing import Params

READS = ("speculative", "oracle_cascade", "verifier_only")  # methods in which the verifier sees every token at once
_ROUND_UP = 64  # buffer lengths are multiples of it, so that similar prompts share a program


class Shapes(NamedTuple):
    """What is static of a run: rows, padded prompt length, slots of every buffer."""

    batch: int
    prompt: int
    slots: int


class Compiled(NamedTuple):
    """Programs of one set of shapes. costs: given, or measured. seconds: spent compiling and measuring."""

    shapes: Shapes
    start: Any
    run: Any
    costs: Costs
    seconds: float


class Engine(NamedTuple):
    """A plan for a pair, and the weights in the places that the programs expect them.

    context: most tokens of a row, see `holders`. compiled: what was compiled so far, by shapes; programs
    that differ only in the padded prompt share `run` and its costs.
    """

    settings: Settings
    pair: Pair
    programs: Programs
    verifier_params: Params
    drafter_params: Params
    context: int
    compiled: dict[Shapes, Compiled]


def build(pair: Pair, settings: Settings) -> Engine:
    """Returns the engine of `settings.method`; of a sequence cascade, the one of its drafter.

    Raises:
      UserError: the method needs a drafter and the pair has none, or the models cannot hold the context.
    """
    if settings.needs_drafter and pair.drafter is None:
        raise UserError(f"METHOD='{settings.method}' needs a drafter: set DRAFTER, or METHOD='verifier_only'")
    alone = settings.method in ("verifier_only", "drafter_only", "sequence_cascade")
    verifier = pair.verifier if settings.method == "verifier_only" or not alone else pair.drafter
    drafter = None if alone else pair.drafter
    assert verifier is not None
    if pair.drafter and pair.drafter.model.reads is not None and settings.method not in READS:
        raise UserError(
            f"{pair.drafter.name} reads what its verifier makes of every token, so it cannot run in "
            f"METHOD='{settings.method}': METHOD is one of {', '.join(READS)}, or choose another DRAFTER"
        )
    oracle = settings.method == "oracle_cascade"
    plan = Plan(
        verifier=verifier.model,
        drafter=drafter.model if drafter else None,
        rule=lossless if alone else settings.rule,
        lookahead=lookahead.fixed(0) if alone or oracle else settings.lookahead,  # pyright: ignore[reportArgumentType]
        k_max=0 if alone else 1 if oracle else settings.k_max,
        vocab_size=shared_vocabulary(pair),
        eos=() if settings.ignore_eos else pair.verifier.tokenizer.eos_ids,
        coupling=settings.coupling,  # pyright: ignore[reportArgumentType]
        bonus="target" if oracle else settings.bonus,  # pyright: ignore[reportArgumentType]
        alone=Origin.VERIFIER if settings.method == "verifier_only" else Origin.DRAFTER,
        layout=verifier.layout,
    )
    programs = compile_plan(plan, advance_sequential if settings.method == "token_cascade" else advance)
    context = min(language.model.context_length for language in holders(pair, settings.method))
    if settings.context is not None and settings.context > context:
        raise UserError(
            f"CONTEXT must be at most {context}, which is what the models can hold, not {settings.context}"
            + goes_further(pair, settings.method)
        )
    return Engine(settings, pair, programs, verifier.params, drafter.params if drafter else {}, context, {})


def holders(pair: Pair, method: str) -> list[LoadedModel]:
    """Returns the models that must hold every token of a row.

    Where the verifier sees every token, it alone: behind its own context a drafter drafts nothing.
    """
    if method in READS or pair.drafter is None:
        return [pair.verifier]
    return [pair.drafter] if method == "drafter_only" else [pair.verifier, pair.drafter]


def goes_further(pair: Pair, method: str) -> str:
    """Returns advice for a text that is too long for a method alone, as it asks the drafter for every token."""
    drafter = pair.drafter
    if method in READS or drafter is None or drafter.model.context_length >= pair.verifier.model.context_length:
        return ""
    return (
        f"; METHOD='{method}' needs the drafter for every token, and {drafter.name} holds "
        f"{drafter.model.context_length}: METHOD='speculative' goes on without it"
    )


def sharing(engine: Engine, others: Iterable[Engine]) -> Engine:
    """Returns `engine` with the programs of one of `others` that traces the same, so that they are compiled once.

    Where a controller begins is no part of a program: every `fixed(k)` is the same one.
    """

    def traced(engine: Engine) -> Plan:
        plan = engine.programs.plan
        return plan._replace(lookahead=plan.lookahead._replace(init=None, name=""))  # pyright: ignore[reportArgumentType]

    for other in others:
        plan = engine.programs.plan
        if engine.pair is other.pair and not plan.lookahead.timed and traced(engine) == traced(other):
            programs = engine.programs._replace(start=other.programs.start, run=other.programs.run)
            return engine._replace(programs=programs, compiled=other.compiled)
    return engine


def slots_for(engine: Engine, limits: Iterable[int]) -> int:
    """Returns the length of the buffers of a run whose rows grow to `limits`."""
    return min(engine.settings.context or _up(max(limits) + 1), engine.context)


def shapes_for(batch: int, lengths: Iterable[int], slots: int) -> Shapes:
    """Returns the shapes of a batch of prompts of `lengths`; its padded prompt is a power of two times 64 at most."""
    width = _ROUND_UP
    while width < max(lengths):
        width *= 2
    return Shapes(batch, min(width, slots), slots)


def compile_for(engine: Engine, shapes: Shapes, example: Request) -> Compiled:
    """Returns the programs of these shapes, compiled at the first call; `seconds` is 0 at the others.

    Measures the costs if the lookahead wants them and none are given.

    Args:
      engine: what to compile. shapes: for what. example: a request of these shapes, to measure on.
    """
    if (known := engine.compiled.get(shapes)) is not None:
        return known._replace(seconds=0.0)
    began = time.perf_counter()
    settings, programs = engine.settings, engine.programs
    given = settings.costs if programs.plan.k_max == settings.k_max else None  # a baseline drafts nothing
    costs = given_costs(programs.plan.k_max, *(given or (0.0, ())))
    initial = _initial(engine, shapes.batch, costs)
    weights = engine.verifier_params, engine.drafter_params
    number = jax.ShapeDtypeStruct((), jnp.int32)
    stop = jax.ShapeDtypeStruct((shapes.batch,), jnp.bool_)
    sibling = next((c for key, c in engine.compiled.items() if key._replace(prompt=shapes.prompt) == shapes), None)

    def start():
        return programs.start.lower(*weights, example, initial, shapes.slots).compile()

    def run(places=None):
        if sibling is not None:
            return sibling.run
        state = jax.eval_shape(partial(programs.start, slots=shapes.slots), *weights, example, initial)
        if places is not None:
            state = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, places)
        return programs.run.lower(*weights, state, stop, number, number).compile()

    if programs.plan.layout is None:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            parts = pool.submit(start), pool.submit(run)
            prefill, loop = parts[0].result(), parts[1].result()
    else:  # on a mesh the loop takes the state where the prefill leaves it
        prefill = start()
        loop = run(prefill.output_shardings)
    compiled = Compiled(shapes, prefill, loop, sibling.costs if sibling else costs, 0.0)
    if sibling is None and programs.plan.drafter and programs.plan.lookahead.timed and not settings.costs:
        compiled = compiled._replace(costs=measure_costs(engine, compiled, example))
    engine.compiled[shapes] = compiled
    return compiled._replace(seconds=time.perf_counter() - began)


def begin(engine: Engine, compiled: Compiled, request: Request) -> State:
    """Prefills a batch. The request is copied: jit may pass its arrays on into the state, which is donated later."""
    request = jax.tree.map(jnp.copy, request)
    initial = _initial(engine, compiled.shapes.batch, compiled.costs)
    return compiled.start(engine.verifier_params, engine.drafter_params, request, initial)


def proceed(engine: Engine, compiled: Compiled, state: State, stop: np.ndarray, rounds: int, forced: int = FREE):
    """Runs at most `rounds` rounds; the state is consumed."""
    return compiled.run(
        engine.verifier_params,
        engine.drafter_params,
        state,
        stop,
        np.int32(rounds),
        np.int32(forced),
    )


def time_rounds(
    engine: Engine, compiled: Compiled, request: Request, lengths: list[int], repeats: int
) -> dict[int, float]:
    """Returns the median seconds of a round that drafts k tokens, for every k in `lengths`.

    A prompt is cut to what leaves the drafter room for them in its own context.
    """
    state = begin(engine, compiled, request)
    drafter = engine.programs.plan.drafter
    room = max(drafter.context_length - max(lengths), 1) if drafter else compiled.shapes.slots
    start = np.minimum(np.asarray(request.length), np.int32(room))
    nothing = np.zeros((compiled.shapes.batch,), bool)
    seconds: dict[int, float] = {}
    for k in lengths:
        times = []
        for _ in range(repeats + 1):  # the first is warm-up: the drafter may have to catch up
            # Whatever the text did, every row takes part again and stands where its prompt ended.
            length = 0 * state.length + start  # on a mesh it stays where it is
            state = state._replace(
                finish=0 * state.finish,
                silent=state.silent & False,
                length=length,
                limit=0 * state.limit + np.int32(compiled.shapes.slots),
                verifier_cache=rewind(state.verifier_cache, length - 1),
                drafter_cache=rewind(state.drafter_cache, length - 1) if state.drafter_cache else None,
            )
            jax.block_until_ready(state)
            began = time.perf_counter()
            state = jax.block_until_ready(proceed(engine, compiled, state, nothing, 1, k))
            times.append(time.perf_counter() - began)
        seconds[k] = float(np.median(times[1:]))
    return dict(zip(seconds, hosts.agreed(np.asarray([*seconds.values()], np.float32)).tolist(), strict=True))


def measure_costs(engine: Engine, compiled: Compiled, request: Request, repeats: int = 3) -> Costs:
    """Measures c and v_k on the compiled round itself, with drafts of a forced length.

    Rounds of different k within one verify width differ by drafter steps alone, which gives c; the rest of each round
    is v_k.
    """
    plan = engine.programs.plan
    ends = [width - 1 for width in plan.widths]
    last = ends[-2] + 1 if len(ends) > 1 else 0  # shares the widest pass with k_max
    lengths = sorted({*ends, last})
    seconds = time_rounds(engine, compiled, request, lengths, repeats)
    k_max = plan.k_max
    if last < k_max:
        draft = (seconds[k_max] - seconds[last]) / (k_max - last)
    else:
        draft = seconds[k_max] - seconds[0]
    draft = min(max(draft, 0.0), *((seconds[k] - seconds[0]) / k for k in ends if k)) if k_max else 0.0
    passes = np.maximum.accumulate([seconds[k] - k * max(draft, 0.0) for k in ends])
    verify = [passes[next(i for i, end in enumerate(ends) if k <= end)] for k in range(k_max + 1)]
    return given_costs(k_max, float(max(draft, 0.0)), tuple(float(x) for x in verify))


def _initial(engine: Engine, batch: int, costs: Costs) -> Any:
    """The lookahead's first state; on a mesh every device holds it."""
    plan = engine.programs.plan
    state = plan.lookahead.init(batch, costs)
    return state if plan.layout is None else hosts.everywhere(state, plan.layout.mesh)


def _up(length: int) -> int:
    return -(-length // _ROUND_UP) * _ROUND_UP
