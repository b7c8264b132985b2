"""The steps of a round, each compiled for a slice: a drafter step with its choice, a verifier pass with its verdict."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from cascades import lookahead, quantization
from cascades.decoding import Plan, compile_plan
from cascades.distributions import Purpose, Sampling, draw, scaled, softmax, stream
from cascades.lookahead import given_costs
from cascades.models import DecoderConfig, abstract_params, decoder, logical_axes
from cascades.models.api import CHUNKS
from cascades.planning import hlo
from cascades.planning.chips import Chip
from cascades.rules import Rule
from cascades.sharding import Layout
from cascades.speculation import Keys, judge
from cascades.typing import Model

_CHOICE = "choice"  # names, in the compiled text, what belongs to rules and sampling


class Cost(NamedTuple):
    """One step on one chip, in bytes but for `flops`.

    weights, cache: what it holds, and must read once: their sum is the least that a pass can move. temporaries: beside
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

    place: where it lives. weights: of `quantization.KINDS`, or None. cache: "int8", or None. kernels: see
    `models.decoder`.
    """

    config: DecoderConfig
    place: Layout
    weights: str | None = None
    cache: str | None = None
    kernels: bool = True


def held(side: Side, sizes: Sizes) -> tuple[int, int]:
    """Returns the bytes of a model's weights and of its cache on one chip; nothing is compiled."""
    _, params, cache = _arrays(side, sizes)
    return _bytes(params), _bytes(cache)


def draft_cost(side: Side, sizes: Sizes) -> Cost:
    """Compiles a drafter step: a pass over one token a row, and the choice of the next."""
    model, params, cache = _arrays(side, sizes)
    place = side.place
    array = partial(_array, place)
    buffer = array((sizes.batch, sizes.k_max + 1, sizes.vocabulary), jnp.float32, ("batch", None, "vocab"))

    def run(params, token, cache, buffer, index, keys, sampling):
        output, cache = model.extend(params, token, cache, jnp.zeros_like(token[:, 0]))
        with jax.named_scope(_CHOICE):
            logits = output.logits[:, 0, : sizes.vocabulary]
            token = draw(scaled(logits, sampling), keys)
            top = jnp.max(softmax(logits), axis=-1)
            buffer = lax.dynamic_update_slice(buffer, logits[:, None], (0, index, 0))
        return token, top, cache, buffer

    token, index = array((sizes.batch, 1), jnp.int32), array((), jnp.int32)
    arguments = (params, token, cache, buffer, index, _keys(place, sizes), _sampling(place, sizes))
    return _cost(run, (2, 3), arguments, params, cache)


def verify_cost(side: Side, sizes: Sizes, width: int, rule: Rule) -> Cost:
    """Compiles a verifier pass over `width` tokens a row, the rule's verdict included."""
    model, params, cache = _arrays(side, sizes)
    place = side.place
    array = partial(_array, place)
    logits = array((sizes.batch, width, sizes.vocabulary), jnp.float32, ("batch", None, "vocab"))

    def run(params, tokens, cache, drafter_logits, lengths, start, keys, alpha, sampling):
        output, cache = model.extend(params, tokens, cache)
        with jax.named_scope(_CHOICE):
            positions = start[:, None] + jnp.arange(width, dtype=jnp.int32)[None, :]
            given = Keys(stream(keys, positions[:, 1:], Purpose.ACCEPT), stream(keys, positions, Purpose.TOKEN))
            block = judge(
                tokens[:, 1:],
                lengths,
                drafter_logits,
                output.logits[:, :, : sizes.vocabulary],
                given,
                (rule,),
                jnp.zeros_like(lengths),
                alpha,
                sampling,
                "maximal",
                "verifier",
            )
        return block, cache

    row = partial(array, (sizes.batch,))
    tokens = array((sizes.batch, width), jnp.int32)
    rows = (row(jnp.int32), row(jnp.int32), _keys(place, sizes), row(jnp.float32), _sampling(place, sizes))
    return _cost(run, (2,), (params, tokens, cache, logits, *rows), params, cache)


class Whole(NamedTuple):
    """The loop as one program. state: bytes of what it carries. aliased: of them, updated in place. See `Cost`."""

    state: int
    aliased: int
    temporaries: int
    collectives: dict[str, tuple[int, int]]


def whole_cost(
    verifier: Side,
    drafter: Side,
    sizes: Sizes,
    rule: Rule,
) -> Whole:
    """Compiles the whole `while_loop` of rounds, as `launch/decode.py` runs it."""
    (large, large_params, _), (small, small_params, _) = (_arrays(side, sizes) for side in (verifier, drafter))
    place = verifier.place
    plan = Plan(large, small, (rule,), lookahead.verifier_guided(), sizes.k_max, sizes.vocabulary, layout=place)
    programs = compile_plan(plan)
    array = partial(_array, place)
    costs = given_costs(sizes.k_max, 0.2)
    guide = jax.eval_shape(lambda: plan.lookahead.init(sizes.batch, costs))
    guide = jax.tree.map(lambda leaf: array(leaf.shape, leaf.dtype), guide)
    vacant = programs.vacant.lower(guide, sizes.slots).compile()
    state = jax.eval_shape(partial(programs.vacant, slots=sizes.slots), guide)
    state = jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), state, vacant.output_shardings
    )
    rest = array((sizes.batch,), jnp.bool_), array((), jnp.int32), array((), jnp.int32), array((), jnp.bool_)
    compiled = programs.run.lower(large_params, small_params, state, *rest).compile()
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
    model = decoder(config, dtype, place, jnp.int8 if side.cache else None, kernels=side.kernels, chunk=CHUNKS["tpu"])
    params = abstract_params(config, dtype)
    params = quantization.pack_all(params, side.weights) if side.weights else params
    params = jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
        params,
        place.shardings(logical_axes(params), params),
    )

    def rows(leaf):
        axes = ("batch", "kv_heads", None, None)[: leaf.ndim]  # of a cache in int8 the scales have an axis less
        return _array(place, leaf.shape, leaf.dtype, axes)

    return model, params, jax.tree.map(rows, jax.eval_shape(lambda: model.init_cache(sizes.batch, sizes.slots)))


def _cost(run: Callable, donated: tuple[int, ...], arguments: tuple, params: Any, cache: Any) -> Cost:
    compiled = jax.jit(run, donate_argnums=donated).lower(*arguments).compile()
    memory, figures = compiled.memory_analysis(), compiled.cost_analysis()
    program = hlo.parse(compiled.as_text() or "")
    assert memory is not None and figures is not None
    return Cost(
        weights=_bytes(params),
        cache=_bytes(cache),
        temporaries=memory.temp_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        moved=hlo.traffic(program),
        chosen=hlo.traffic(program, within=_CHOICE),
        counted=figures["bytes accessed"],
        flops=figures["flops"],
        collectives=hlo.collectives(program),
        chosen_collectives=hlo.collectives(program, within=_CHOICE),
    )


def _array(place: Layout, shape: tuple[int, ...], dtype, axes: tuple | None = None) -> Any:
    """Whole on every chip, unless its axes are named."""
    at = place.sharding(axes, shape) if axes else jax.sharding.NamedSharding(place.mesh, PartitionSpec())
    return jax.ShapeDtypeStruct(shape, dtype, sharding=at)


def _keys(place: Layout, sizes: Sizes) -> Any:
    return _array(place, (sizes.batch,), jax.eval_shape(lambda: jax.random.key(0)).dtype)


def _sampling(place: Layout, sizes: Sizes) -> Sampling:
    real, whole = (_array(place, (sizes.batch,), dtype) for dtype in (jnp.float32, jnp.int32))
    return Sampling(real, whole, real, real)


def _bytes(tree: Any) -> int:
    """Bytes on one chip; keys count as two words."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        size = 8 if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize
        total += math.prod(leaf.sharding.shard_shape(leaf.shape)) * size
    return total
