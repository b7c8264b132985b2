"""What an engine learns from its requests, and what of it is kept for the next run of a pair on such a machine."""

import contextlib
import hashlib
import json
import os
import pathlib
from functools import partial

import jax
import numpy as np

from cascades import hosts
from cascades.decoding import State
from cascades.generation import clock
from cascades.generation.engine import Compiled, Engine
from cascades.generation.placement import processor
from cascades.lookahead import given_costs


def learn(engine: Engine, state: State, slot: int) -> None:
    """Keeps what the lookahead of a row that ends has learnt; not where costs are given, so that a run repeats."""
    if not engine.programs.plan.lookahead.learns or engine.settings.costs:
        return
    row = jax.tree.map(lambda x: x[slot : slot + 1], hosts.whole(state.lookahead))
    share = 1 / state.length.shape[0]  # as many rows are learning at once

    def mean(old: np.ndarray, new: np.ndarray) -> np.ndarray:
        return old + np.float32(share) * (new - old) if np.issubdtype(new.dtype, np.floating) else new

    engine.learnt[:] = [jax.tree.map(mean, engine.learnt[0], row) if engine.learnt else row]


def recall(engine: Engine, compiled: Compiled) -> clock.Belief | None:
    """Returns what an equal engine believed of passes on such a machine.

    What its lookahead had learnt is `engine`'s from here on, unless that knows more already. None where nothing is kept
    or what is kept does not fit.
    """
    if engine.memory is None:
        return None
    plan = engine.programs.plan
    first = plan.lookahead.init(1, given_costs(plan.k_max, 0.0)) if plan.lookahead.learns else ()
    like, shape = jax.tree.flatten(first)
    try:
        told = json.loads(_file(engine.memory, engine, compiled).read_text(encoding="utf-8"))
        *seconds, call = np.asarray([*told["seconds"], told["call"]], np.float64)
        learnt = [np.asarray(values, leaf.dtype) for values, leaf in zip(told["learnt"], like, strict=True)]
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    shapes = [leaf.shape for leaf in learnt] == [leaf.shape for leaf in like]
    if not shapes or len(seconds) != len(plan.passes) + clock.OTHERS:
        return None
    if not all(bool(np.all(np.isfinite(each))) for each in (seconds, call, *learnt)):
        return None
    if not (min(*seconds, call) >= 0 and min(seconds[: -clock.OTHERS]) > 0):
        return None
    if learnt and not engine.learnt:
        engine.learnt[:] = [jax.tree.unflatten(shape, learnt)]
    return clock.measured(np.asarray(seconds), float(call))


def keep(engine: Engine, compiled: Compiled) -> None:
    """Writes what `recall` reads, whole or not at all. Where nothing can be written, the next run measures anew."""
    if engine.memory is None or compiled.belief is None:
        return
    learnt = [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(engine.learnt)]
    belief = compiled.belief
    text = json.dumps({"seconds": clock.in_order(belief).tolist(), "call": belief.call, "learnt": learnt})
    file = _file(engine.memory, engine, compiled)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_suffix(f".{os.getpid()}")
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(file)


def _file(folder: pathlib.Path, engine: Engine, compiled: Compiled) -> pathlib.Path:
    """Where what is known of such an engine stands: another pair, plan, shape or machine has another file."""
    plan, pair, device = engine.programs.plan, engine.pair, jax.devices()[0]
    cache = jax.eval_shape(partial(plan.verifier.init_cache, *compiled.shapes))
    arrays = jax.tree.leaves((engine.verifier_params, engine.drafter_params, cache))
    parts = (
        (pair.verifier.name, pair.drafts, [(leaf.shape, str(leaf.dtype)) for leaf in arrays]),
        (plan.passes, plan.k_max, plan.lookahead.name, [rule.__name__ for rule in plan.rules], plan.coupling),
        (compiled.shapes, jax.__version__, device.device_kind, jax.device_count(), processor(), os.cpu_count()),
    )
    return folder / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}.json"
