"""What a round costs, measured on the program that runs."""

import time

import jax
import numpy as np

from cascades import hosts
from cascades.cache import rewind
from cascades.decoding import Request, State
from cascades.generation import engine as engines
from cascades.generation.engine import Compiled, Engine, Shapes
from cascades.lookahead import Costs, given_costs
from cascades.typing import Array


def programs_for(engine: Engine, shapes: Shapes, ids: tuple[int, ...]) -> Compiled:
    """Returns compiled programs for prompts like `ids`, with costs measured on it if the lookahead wants them."""
    fresh = shapes not in engine.compiled
    compiled = engines.compile_for(engine, shapes, len(ids))
    plan = engine.programs.plan
    if fresh and plan.longest and plan.lookahead.timed and not engine.settings.costs:
        began = time.perf_counter()
        request = engines.row(engine, engines.prompt_width(engine, len(ids), shapes.slots), ids, shapes.slots)
        compiled.costs = measure_costs(engine, compiled, request)
        compiled.seconds += time.perf_counter() - began
    return compiled


def measure_costs(engine: Engine, compiled: Compiled, request: Request, repeats: int = 3) -> Costs:
    """Measures c and v_k on the compiled round itself, with drafts of a forced length.

    Rounds of different k within one verify width differ by drafter steps alone, which gives c; the rest of each round
    is v_k.
    """
    plan = engine.programs.plan
    ends = [width - 1 for width in plan.passes]
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


def time_rounds(
    engine: Engine, compiled: Compiled, request: Request, lengths: list[int], repeats: int
) -> dict[int, float]:
    """Returns the median seconds of a round that drafts k tokens, for every k in `lengths`.

    Every row holds the request's prompt, cut to what leaves the drafter room for them in its own context.
    """
    state = engines.vacant(engine, compiled)
    for slot in range(compiled.shapes.batch):
        state = engines.admit(engine, compiled, state, request, slot)
    drafter = engine.programs.plan.drafter
    room = max(drafter.context_length - max(lengths), 1) if drafter else compiled.shapes.slots
    start = min(int(np.asarray(hosts.whole(request.length))[0]), room)
    nothing = np.zeros((compiled.shapes.batch,), bool)
    seconds: dict[int, float] = {}
    for k in lengths:
        times = []
        for _ in range(repeats + 1):  # the first is warm-up: the drafter may have to catch up
            state = jax.block_until_ready(_again(state, start, compiled.shapes.slots))
            began = time.perf_counter()
            state = jax.block_until_ready(engines.proceed(engine, compiled, state, nothing, 1, k))
            times.append(time.perf_counter() - began)
        seconds[k] = float(np.median(times[1:]))
    return dict(zip(seconds, hosts.agreed(np.asarray([*seconds.values()], np.float32)).tolist(), strict=True))


def _again(state: State, start: int, slots: int) -> State:
    """Whatever the text did, every row takes part again and stands where its prompt ended. Nothing is compiled."""

    def full(like: Array, value: int) -> Array:
        values = np.full(like.shape, value, like.dtype)
        return jax.make_array_from_callback(like.shape, like.sharding, lambda index: values[index])

    return state._replace(
        finish=full(state.finish, 0),
        silent=full(state.silent, 0),
        length=full(state.length, start),
        limit=full(state.limit, slots),
        verifier_cache=rewind(state.verifier_cache, full(state.verifier_cache.length, start - 1)),
        drafter_cache=state.drafter_cache and rewind(state.drafter_cache, full(state.drafter_cache.length, start - 1)),
    )
