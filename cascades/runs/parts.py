"""What a round is made of, each part timed alone: a model's pass, its products, the choice of tokens."""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cascades.cache import rewind
from cascades.decoding.draft import Asked, Drafting, Said, drafter_step, no_drafts
from cascades.decoding.round import round_keys
from cascades.distributions import Sampling
from cascades.generation import Engine, LoadedModel, Shapes
from cascades.generation import engine as engines
from cascades.generation.engine import Compiled
from cascades.models import layers
from cascades.quantization import inner_axes
from cascades.rules import Rule
from cascades.speculation import judge
from cascades.typing import Params

Timer = Callable[[], float]
"""Runs a part once, and returns the seconds that it took."""


class Part(NamedTuple):
    """Something that is timed. kind, name, facts: of its line. warm: whether it runs once more before it is timed."""

    kind: str
    name: str
    run: Timer
    facts: dict[str, Any]
    warm: bool = True


def timed_pass(language: LoadedModel, shapes: Shapes, length: int, width: int) -> Timer:
    """Returns a function that times one pass over `width` tokens a row, behind `length` that are cached."""
    model = language.model
    tokens = jnp.ones((shapes.batch, width), jnp.int32)
    held = jnp.full((shapes.batch,), length, jnp.int32)

    given = (
        {"features": jnp.zeros((shapes.batch, width, model.feature_width), jnp.float32)} if model.feature_width else {}
    )

    @partial(jax.jit, donate_argnums=1)
    def run(params, cache):
        output, cache = model.extend(params, tokens, cache, **given)
        return output.logits, rewind(cache, held)

    cache: list[Any] = [rewind(model.init_cache(shapes.batch, shapes.slots), jnp.array(held))]

    def timed() -> float:
        began = time.perf_counter()
        logits, cache[0] = jax.block_until_ready(run(language.params, cache[0]))
        del logits
        return time.perf_counter() - began

    timed()  # compiles
    timed()  # and on a mesh again, as the cache comes back where the model keeps it
    return timed


def timed_products(language: LoadedModel, batch: int, width: int) -> Timer:
    """Returns a function that times the matrix products of such a pass, and nothing that stands between them.

    They do not wait for each other, which those of a pass do: what is told is the least.
    """
    kernels = [(path, kernel, inner_axes(path, kernel)) for path, kernel in read_whole(language.params)]
    kernels = [(path[0], kernel, axes) for path, kernel, axes in kernels if axes]
    dtype = language.params["embed"]["embedding"].dtype  # of a quantised one, what its rows are looked up in
    inner = {tuple(kernel.shape[-axes:]) for _, kernel, axes in kernels}
    inputs = {shape: jnp.ones((batch * width, *shape), dtype) for shape in inner}

    @jax.jit
    def run(inputs, matrices):
        return [
            layers.contract(inputs[matrix.shape[-axes:]], matrix, axes, jnp.float32 if owner in _HEADS else None)
            for matrix, (owner, _, axes) in zip(matrices, kernels, strict=True)
        ]

    return _timed(run, inputs, [kernel for _, kernel, _ in kernels])


_HEADS = ("embed", "head")  # which of them scores: its products are float32


def least_bytes(language: LoadedModel, shapes: Shapes, length: int, width: int) -> int:
    """Returns the bytes that a device has to read for such a pass: its weights once, and of its cache what is held.

    A token table that does not score counts for the rows that are looked up. Layers with a window could do with less of
    the cache than is counted here, and where a mesh holds something twice, each device reads more.
    """
    weights = sum(_bytes(leaf) for _, leaf in read_whole(language.params))
    if "head" in language.params:
        table = jax.tree.leaves(language.params["embed"])[0]
        weights += shapes.batch * width * table.shape[-1] * table.dtype.itemsize
    cache = jax.eval_shape(lambda: language.model.init_cache(shapes.batch, shapes.slots))
    if hasattr(cache, "features"):  # for a drafter: the pass writes them alone
        cache = cache._replace(features=None)
    buffers = [leaf for leaf in jax.tree.leaves(cache) if leaf.ndim > 2]
    whole = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in buffers)
    devices = language.layout.mesh.size if language.layout else 1
    return weights + whole * min(length + width, shapes.slots) // (shapes.slots * devices)


def read_whole(params: Params) -> list[tuple[tuple[str, ...], Any]]:
    """Returns the parameters that every pass behind a prefill reads whole, each with its path.

    Not an encoder, nor what makes keys and values of what it said, nor a token table beside a head of its own.
    """

    def walk(tree: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
        if not isinstance(tree, dict):
            return [(path, tree)]
        return [each for name, part in tree.items() for each in walk(part, (*path, name))]

    def idle(path: tuple[str, ...]) -> bool:
        of_encoder = path[0].startswith("encoder") or ("cross" in path and path[-2] in ("k", "v"))
        return of_encoder or (path[0] == "embed" and "head" in params)

    return [(path, leaf) for path, leaf in walk(params, ()) if not idle(path)]


def timed_draw(engine: Engine, compiled: Compiled) -> Timer:
    """Returns a function that times how a drafter's token is drawn: its step in the loop, without the pass."""
    plan, state = engine.programs.plan, _seated(engine, compiled)
    assert plan.drafter is not None
    batch, size, width = compiled.shapes.batch, plan.vocab_size, plan.drafter.feature_width
    features = None if width is None else jnp.zeros((batch, 1, width), jnp.float32)
    logits = jax.random.normal(jax.random.key(0), (batch, size), jnp.float32)
    held = [state.draft_logits]
    state = state._replace(verifier_cache=None, draft_logits=jnp.zeros((batch, plan.longest + 1, 1), jnp.float32))

    @partial(jax.jit, donate_argnums=2)
    def run(params, logits, buffer, state):
        _, keys = round_keys(state, plan.longest, plan.coupling)
        rows = jnp.ones_like(state.length, bool)
        drafts = no_drafts(state, jnp.full_like(state.length, plan.k_max))._replace(logits=buffer)
        asked = Asked(
            rows,
            jnp.full_like(state.length, plan.k_max + 1),
            keys,
            rows if plan.together else None,
            jnp.ones((), bool),
            state.sampling,
        )
        said = Said(logits, features)
        now = Drafting(jnp.int32(0), drafts, said, state.drafter_cache, state.lookahead, state.clock)
        after = drafter_step(plan, params, asked, now, jnp.zeros((), bool))
        return after.drafts.logits, (after.drafts._replace(logits=None), after.lookahead)

    def timed() -> float:
        began = time.perf_counter()
        held[0], _ = jax.block_until_ready(run(engine.drafter_params, logits, held[0], state))
        return time.perf_counter() - began

    timed()
    return timed


def timed_judge(engine: Engine, compiled: Compiled, rule: Rule, k: int) -> Timer:
    """Returns a function that times how a rule judges k drafts a row, and what is drawn behind them."""
    plan, state = engine.programs.plan, _seated(engine, compiled)
    state = state._replace(verifier_cache=None, drafter_cache=None, draft_logits=jnp.zeros((1, 1, 1), jnp.float32))
    batch = compiled.shapes.batch
    shape = (batch, k + 1, plan.vocab_size)
    p, q = (jax.random.normal(jax.random.key(seed), shape, jnp.float32) for seed in (0, 1))
    drafts = jnp.argmax(p[:, :k], axis=-1).astype(jnp.int32)  # a greedy verifier keeps them all
    rows, found = jnp.ones((batch,), bool), jnp.zeros((batch, k), bool)

    @jax.jit
    def run(p, q, state):
        keys, _ = round_keys(state, k, plan.coupling)
        lengths, choice = jnp.full_like(state.length, k), jnp.zeros_like(state.rule)
        given = keys, (rule,), choice, state.alpha, state.sampling, plan.coupling, plan.bonus, rows
        return judge(drafts, lengths, q if plan.drafter else None, p, *given, found if plan.lookup else None)

    return _timed(run, p, q, state)


def _seated(engine: Engine, compiled: Compiled) -> Any:
    """A state whose rows decode as the settings say."""
    settings, state = engine.settings, engines.vacant(engine, compiled)
    wanted = settings.temperature, settings.top_k, settings.top_p, settings.min_p
    sampling = Sampling(*(jnp.full_like(x, value) for x, value in zip(state.sampling, wanted, strict=True)))
    return state._replace(sampling=sampling, alpha=jnp.full_like(state.alpha, settings.alpha))


def _timed(run: Callable, *arguments: Any) -> Timer:
    def timed() -> float:
        began = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        return time.perf_counter() - began

    timed()  # compiles
    return timed


def _bytes(leaf: Any) -> int:
    """Of what one device holds of a parameter; a quantised one has several arrays."""
    return sum(array.addressable_shards[0].data.nbytes for array in jax.tree.leaves(leaf))
