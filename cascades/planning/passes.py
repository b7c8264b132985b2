"""The steps of a round, each compiled for a slice: a drafter step with its choice, a verifier pass with its verdict."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from cascades import lookahead, quantization
from cascades.decoding import Plan, Programs, State, compile_plan
from cascades.decoding import draft as drafting
from cascades.decoding import round as rounds
from cascades.decoding.draft import Asked, Draft, Drafting, Said
from cascades.decoding.plan import CHOICE
from cascades.lookahead import given_costs
from cascades.models import Config, abstract_params, build, logical_axes
from cascades.models.api import CHUNKS
from cascades.planning import hlo
from cascades.planning.chips import Chip
from cascades.rules import Rule
from cascades.sharding import Layout
from cascades.speculation import Keys
from cascades.typing import Model


class Cost(NamedTuple):
    """One step on one chip, in bytes but for `flops`.

    weights, cache: what it must read once: their sum is the least that a pass can move. temporaries: beside
    them. aliased: buffers that are updated in place. moved: read from and written to HBM, see `hlo.traffic`.
    counted: the compiler's own count. collectives: count and bytes by kind. chosen, chosen_collectives: what of
    these rules and sampling take.
    """

    weights: int
    cache: int
    temporaries: int
    aliased: int
    moved: int
    chosen: int
    counted: float
    flops: float
    collectives: dict[str, tuple[int, int]]
    chosen_collectives: dict[str, tuple[int, int]]

    @property
    def least(self) -> int:
        return self.weights + self.cache

    def seconds(self, chip: Chip) -> float:
        """A roofline: the slower of memory and arithmetic, and the collectives behind it."""
        sent = sum(size for _, size in self.collectives.values())
        return max(self.moved / chip.bandwidth, self.flops / chip.compute) + sent / chip.link


class Sizes(NamedTuple):
    """batch: rows of the whole slice. slots: of each row's caches. vocabulary: logits. k_max: longest draft."""

    batch: int
    slots: int
    vocabulary: int
    k_max: int


class Side(NamedTuple):
    """One model of a pair, in bfloat16.

    place: where it lives. weights: of `quantization.KINDS`, or None. cache: "int8", or None. kernels, features: see
    `models.decoder`.
    """

    config: Config
    place: Layout
    weights: str | None = None
    cache: str | None = None
    kernels: bool = True
    features: bool = False


def held(side: Side, sizes: Sizes) -> tuple[int, int]:
    """Returns the bytes of a model's weights and of its cache on one chip; nothing is compiled."""
    _, params, cache = _arrays(side, sizes)
    return _bytes(params), _bytes(cache)


class Loop(NamedTuple):
    """A pair's loop: its plan and programs, and the shapes of what these are given, each in its place.

    keys: of a round. drafts: see `decoding.draft.Draft`.
    """

    plan: Plan
    programs: Programs
    verifier_params: Any
    drafter_params: Any
    state: State
    keys: Keys
    drafts: Draft


def loop_of(verifier: Side, drafter: Side, sizes: Sizes, rule: Rule) -> Loop:
    """Returns the loop that `launch/decode.py` runs, its state as its own programs lay it out."""
    (large, large_params, _), (small, small_params, _) = (_arrays(side, sizes) for side in (verifier, drafter))
    place = verifier.place
    plan = Plan(large, small, (rule,), lookahead.verifier_guided(), sizes.k_max, sizes.vocabulary, layout=place)
    programs = compile_plan(plan)
    costs = given_costs(sizes.k_max, 0.2)
    guide = _rows(place, jax.eval_shape(lambda: plan.lookahead.init(sizes.batch, costs)))
    at = programs.vacant.lower(guide, sizes.slots).compile().output_shardings
    state = jax.eval_shape(partial(programs.vacant, slots=sizes.slots), guide)
    state = jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), state, at)
    keys, _ = _rows(place, jax.eval_shape(lambda state: rounds.round_keys(state, plan.k_max, plan.coupling), state))
    drafts = _rows(place, jax.eval_shape(lambda state: drafting.no_drafts(state, state.length), state))
    drafts = drafts._replace(logits=state.draft_logits)
    return Loop(plan, programs, large_params, small_params, state, keys, drafts)


def draft_cost(loop: Loop) -> Cost:
    """Compiles the loop's step of the drafter: a pass over one token a row, and the choice of the next."""
    plan, params, state, place = loop.plan, loop.drafter_params, loop.state, loop.plan.layout
    assert place is not None and plan.drafter is not None
    batch, _, vocabulary = state.draft_logits.shape
    width = plan.drafter.feature_width
    features = None if width is None else _rows(place, jax.ShapeDtypeStruct((batch, 1, width), jnp.bfloat16))
    said = Said(_array(place, (batch, vocabulary), jnp.float32, ("batch", "vocab")), features)
    index, flag = (_array(place, (), dtype) for dtype in (jnp.int32, jnp.bool_))
    row, rows = state.length, _rows(place, jax.ShapeDtypeStruct((batch,), jnp.bool_))
    asked = Asked(rows, row, loop.keys.token, rows if plan.together else None, flag, state.sampling)
    now = Drafting(index, loop.drafts, said, state.drafter_cache, state.lookahead, state.clock)

    def run(params, asked, now, due):
        return drafting.drafter_step(plan, params, asked, now, due)

    return _cost(run, (2,), (params, asked, now, flag), params, state.drafter_cache)


def verify_cost(loop: Loop, width: int) -> Cost:
    """Compiles the loop's pass of the verifier over `width` tokens a row, its verdict included."""
    plan, params, state, place = loop.plan, loop.verifier_params, loop.state, loop.plan.layout
    assert place is not None
    fed = _rows(place, jax.ShapeDtypeStruct((state.length.shape[0], width), jnp.int32))

    def run(params, state, drafts, keys, fed, cache):
        kept, cache, unread = rounds.verifier_pass(plan, params, state, drafts, keys, fed, cache)
        return rounds.verdict(plan, state, drafts, keys, kept), cache, unread

    arguments = params, state, loop.drafts, loop.keys, fed, state.verifier_cache
    return _cost(run, (5,), arguments, params, state.verifier_cache)


class Whole(NamedTuple):
    """The loop as one program. state: bytes of what it carries. aliased: of them, updated in place. See `Cost`."""

    state: int
    aliased: int
    temporaries: int
    collectives: dict[str, tuple[int, int]]


def whole_cost(loop: Loop) -> Whole:
    """Compiles the whole `while_loop` of rounds, as `launch/decode.py` runs it."""
    state, place = loop.state, loop.plan.layout
    assert place is not None
    stop = _rows(place, jax.ShapeDtypeStruct(state.length.shape, jnp.bool_))
    number, flag = (_array(place, (), dtype) for dtype in (jnp.int32, jnp.bool_))
    given = loop.verifier_params, loop.drafter_params, state, stop, number, number, flag
    compiled = loop.programs.run.lower(*given).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    return Whole(
        state=_bytes(state),
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        collectives=hlo.collectives(hlo.parse(compiled.as_text() or "")),
    )


def _arrays(side: Side, sizes: Sizes) -> tuple[Model, Any, Any]:
    """A model, and the shapes of its weights and cache in their places."""
    config, place, dtype = side.config, side.place, jnp.bfloat16
    cache_dtype, (chunk,) = jnp.int8 if side.cache else None, CHUNKS["tpu"]
    model = build(config, dtype, place, cache_dtype, kernels=side.kernels, features=side.features, chunk=chunk)
    params = abstract_params(config, dtype)
    params = quantization.pack_all(params, side.weights) if side.weights else params
    params = jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
        params,
        place.shardings(logical_axes(params), params),
    )

    def rows(leaf):
        # Of a cache in int8 the scales have an axis less; features have one head, which nothing splits.
        axes = ("batch", "kv_heads", None, None)[: leaf.ndim]
        return _array(place, leaf.shape, leaf.dtype, axes)

    return model, params, jax.tree.map(rows, jax.eval_shape(lambda: model.init_cache(sizes.batch, sizes.slots)))


def _cost(run: Callable, donated: tuple[int, ...], arguments: tuple, params: Any, cache: Any) -> Cost:
    compiled = jax.jit(run, donate_argnums=donated).lower(*arguments).compile()
    memory, figures = compiled.memory_analysis(), compiled.cost_analysis()
    program = hlo.parse(compiled.as_text() or "")
    assert memory is not None and figures is not None
    return Cost(
        weights=_bytes({name: part for name, part in params.items() if not name.startswith("encoder")}),
        cache=_bytes(cache),
        temporaries=memory.temp_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        moved=hlo.traffic(program),
        chosen=hlo.traffic(program, within=CHOICE),
        counted=figures["bytes accessed"],
        flops=figures["flops"],
        collectives=hlo.collectives(program),
        chosen_collectives=hlo.collectives(program, within=CHOICE),
    )


def _array(place: Layout, shape: tuple[int, ...], dtype, axes: tuple | None = None) -> Any:
    """Whole on every chip, unless its axes are named."""
    at = place.sharding(axes, shape) if axes else jax.sharding.NamedSharding(place.mesh, PartitionSpec())
    return jax.ShapeDtypeStruct(shape, dtype, sharding=at)


def _rows(place: Layout, tree: Any) -> Any:
    """Arrays of which each leads with the batch."""
    return jax.tree.map(lambda x: _array(place, x.shape, x.dtype, ("batch", *(None,) * (x.ndim - 1))), tree)


def _bytes(tree: Any) -> int:
    """Bytes on one chip; keys count as two words."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        size = 8 if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize
        total += math.prod(leaf.sharding.shard_shape(leaf.shape)) * size
    return total
