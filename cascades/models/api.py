"""Decoders and encoder–decoders as a `Model`: pure functions over a plain nested dict of parameters."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from cascades import cache as kv
from cascades.errors import UserError
from cascades.models import attention, decode_attention
from cascades.models.config import Config, DecoderConfig, T5Config
from cascades.models.decoder import Decoder
from cascades.models.encoder_decoder import EncoderDecoder, T5Cache
from cascades.sharding import Layout, Logical, anywhere
from cascades.typing import Array, Branch, Float, Int, Key, Model, Output, Params

CHUNKS = {"cpu": (128, 32), "tpu": (256,)}
"""Tokens of one pass of a prefill, the widest first: a narrow one takes what is left of a prompt.

A TPU multiplies so many in about the time that reading the weights takes. On CPUs a wide pass takes 2.3 times as long
as a narrow one, so that it pays for more than half of its tokens.
"""
WHOLE = 1 << 30


def decoder(
    config: DecoderConfig,
    dtype=jnp.float32,
    layout: Layout | None = None,
    cache_dtype=None,
    *,
    kernels: bool = True,
    features: bool = False,
    chunk: int | None = None,
) -> Model:
    """Returns the functions of a decoder-only model.

    Args:
      config: its shape.
      dtype: of weights, activations and cache, float32 or bfloat16; norms, softmax, rotations and logits are
        float32 in either case.
      layout: where activations live; None is one device. Weights live by `logical_axes`.
      cache_dtype: of the cache, where it is another: int8 quantises keys and values, a scale for each token and head,
        `cache.BITS` is bfloat16 as CPUs are fast with.
      kernels: whether TPUs attend by the kernel of `decode_attention`.
      features: whether its caches keep what a drafter may read.
      chunk: tokens of every pass of a prefill; None is what suits the machine, `WHOLE` takes a prompt in one pass,
        which alone can be differentiated.
    """
    chunks = (chunk,) if chunk else CHUNKS.get(jax.default_backend(), CHUNKS["tpu"])
    graph, _ = _split(config, jnp.dtype(dtype))
    constrain = layout.constrain if layout else anywhere
    kernel = decode_attention.placed(layout) if kernels else None

    def init(key: Key[Array, ""]) -> Params:
        module = Decoder(config, dtype=dtype, rngs=nnx.Rngs(params=key))
        return nnx.to_pure_dict(nnx.split(module)[1])

    def init_cache(batch: int, slots: int) -> kv.KVCache:
        _check_slots(config, slots)
        cache = kv.init(batch, slots, config.num_layers, config.num_kv_heads, config.head_dim, cache_dtype or dtype)
        keys, values = (tuple(attention.placed(buffer, constrain) for buffer in each) for each in cache[:2])
        shape = (batch, 1, slots, config.d_model)
        kept = kv.BITS if cache_dtype == kv.BITS else dtype
        kept = constrain(jnp.zeros(shape, kept), attention.CACHE) if features else None
        return kv.KVCache(keys, values, cache.length, kept)

    def prefill(
        params: Params, tokens: Int[Array, "b s"], lengths: Int[Array, " b"], cache: kv.KVCache, features=None
    ) -> kv.KVCache:
        """In chunks, as many as the longest row fills, so that prompts of any length share a program."""
        _check_prompt(tokens, cache)
        module, widths = nnx.merge(graph, params), [width for width in chunks if width < tokens.shape[1]]
        if not widths:
            _, cache = module.hidden(tokens, cache, start=jnp.int32(0), constrain=constrain, features=features)
            return kv.rewind(cache, lengths)

        def more(carry, least: int):
            start, _ = carry
            return start + least <= jnp.max(lengths)

        def feed(carry, width: int):
            start, cache = carry
            # The last chunk may reach back: a token that is read again leaves what it left before.
            at = jnp.minimum(start, tokens.shape[1] - width)

            def part(x: Array) -> Array:
                return lax.dynamic_slice_in_dim(x, at, width, axis=1)

            given = None if features is None else part(features)
            _, cache = module.hidden(part(tokens), cache, start=at, constrain=constrain, features=given)
            return start + width, cache

        carry = jnp.int32(0), cache
        for width in widths:
            least = 1 if width == widths[-1] else width // 2 + 1
            more_left, fed = functools.partial(more, least=least), functools.partial(feed, width=width)
            carry = lax.while_loop(more_left, fed, carry)
        return kv.rewind(carry[1], lengths)

    def extend(
        params: Params,
        tokens: Int[Array, "b s"],
        cache: kv.KVCache,
        select: Int[Array, " b"] | None = None,
        features: Float[Array, "b s d"] | None = None,
        branch: Branch | None = None,
    ) -> tuple[Output, kv.KVCache]:
        module = nnx.merge(graph, params)
        given = {"constrain": constrain, "kernel": kernel, "features": features, "branch": branch}
        x, cache = module.hidden(tokens, cache, **given)
        x = _selected(x, select)
        return Output(module.logits(x, constrain), x), cache

    def score(
        params: Params, features: Float[Array, "b s d"], tokens: Int[Array, " m"] | None = None
    ) -> Float[Array, "b s v"]:
        return nnx.merge(graph, params).logits(features, constrain, tokens)

    feature_width = config.d_model if config.reads_features else None
    return Model(
        config.vocab_size,
        config.context_length,
        init,
        init_cache,
        prefill,
        extend,
        None,
        score=score,
        feature_width=feature_width,
    )


def encoder_decoder(config: T5Config, dtype=jnp.float32, layout: Layout | None = None, cache_dtype=None) -> Model:
    """Returns the functions of an encoder–decoder; for the arguments see `decoder`.

    `prefill` encodes a prompt, `extend` feeds the decoder, whose first token is `start`.
    """
    graph, _ = _split(config, jnp.dtype(dtype))
    constrain = layout.constrain if layout else anywhere

    def init(key: Key[Array, ""]) -> Params:
        module = EncoderDecoder(config, dtype=dtype, rngs=nnx.Rngs(params=key))
        return nnx.to_pure_dict(nnx.split(module)[1])

    def init_cache(batch: int, slots: int) -> T5Cache:
        _check_slots(config, slots)
        count, shape = config.num_decoder_layers, (config.num_heads, config.head_dim)
        own, cross = (kv.init(batch, slots, count, *shape, cache_dtype or dtype) for _ in range(2))
        buffers = (tuple(attention.placed(each, constrain) for each in part) for part in (*own[:2], *cross[:2]))
        return T5Cache(*buffers, encoded=cross.length, length=own.length)

    def prefill(params: Params, tokens: Int[Array, "b s"], lengths: Int[Array, " b"], cache: T5Cache) -> T5Cache:
        _check_prompt(tokens, cache)
        return nnx.merge(graph, params).encode(tokens, lengths, cache, constrain)

    def extend(
        params: Params, tokens: Int[Array, "b s"], cache: T5Cache, select: Int[Array, " b"] | None = None
    ) -> tuple[Output, T5Cache]:
        module = nnx.merge(graph, params)
        x, cache = module.decode(tokens, cache, constrain)
        x = _selected(x, select)
        return Output(module.logits(x, constrain), x), cache

    def score(
        params: Params, features: Float[Array, "b s d"], tokens: Int[Array, " m"] | None = None
    ) -> Float[Array, "b s v"]:
        return nnx.merge(graph, params).logits(features, constrain, tokens)

    return Model(config.vocab_size, config.context_length, init, init_cache, prefill, extend, config.start, score=score)


def build(
    config: Config,
    dtype=jnp.float32,
    layout: Layout | None = None,
    cache_dtype=None,
    *,
    kernels: bool = True,
    features: bool = False,
    chunk: int | None = None,
) -> Model:
    """Returns the functions of a model of either kind; for the arguments see `decoder`.

    Raises:
      UserError: features of an encoder–decoder, which keeps none.
    """
    if isinstance(config, T5Config):
        if features:
            raise UserError("a drafter that reads hidden states drafts for a decoder, not for an encoder–decoder.")
        return encoder_decoder(config, dtype, layout, cache_dtype)
    return decoder(config, dtype, layout, cache_dtype, kernels=kernels, features=features, chunk=chunk)


def abstract_params(config: Config, dtype=jnp.float32) -> Params:
    """The parameter tree as `jax.ShapeDtypeStruct`s: kernels in `dtype`, norm scales in float32."""
    _, state = _split(config, jnp.dtype(dtype))
    return nnx.to_pure_dict(state)


def count_params(config: Config) -> int:
    """Number of parameters; a tied head is counted once."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))


def logical_axes(params: Params) -> Params:
    """The names of every parameter's axes, as a tree of `sharding.Logical`; `params` holds arrays or their shapes.

    A bias, and the scale of a quantised matrix, have the leading axes of its kernel.
    """

    def axes(path, leaf) -> Logical:
        names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
        owner = next((name for name in reversed(names) if name in _AXES), "")
        known = _AXES.get(owner) or (None,) * leaf.ndim
        return known[: leaf.ndim]

    return jax.tree_util.tree_map_with_path(axes, params)


_AXES: dict[str, Logical] = {
    "embed": ("vocab", "width"),
    "head": ("vocab", "width"),
    "q": ("heads", None, "width"),
    "k": ("kv_heads", None, "width"),
    "v": ("kv_heads", None, "width"),
    "o": ("width", "heads", None),
    "gate": ("mlp", "width"),
    "up": ("mlp", "width"),
    "down": ("width", "mlp"),
    "fuse": ("width", None),
}
"""By the module that owns a kernel; a bias has the first axes of its kernel, norms are whole everywhere."""


@functools.cache
def _split(config: Config, dtype) -> tuple[Any, Any]:
    if isinstance(config, T5Config):
        return nnx.split(EncoderDecoder(config, dtype=dtype, rngs=None))
    return nnx.split(Decoder(config, dtype=dtype, rngs=None))


def _check_slots(config: Config, slots: int) -> None:
    if not 1 <= slots <= config.context_length:
        raise UserError(f"a cache of 1 to {config.context_length} slots was expected, not {slots}.")


def _check_prompt(tokens: Int[Array, "b s"], cache: kv.KVCache | T5Cache) -> None:
    slots = cache.keys[0].shape[2]
    if tokens.shape[1] > slots:
        raise UserError(
            f"a prompt of {tokens.shape[1]} tokens does not fit a cache of {slots} slots: "
            "shorten the prompt or ask for a longer cache."
        )


def _selected(x: Float[Array, "b s d"], select: Int[Array, " b"] | None) -> Float[Array, "b #s d"]:
    """Hidden states of one position a row, or of all."""
    return x if select is None else jnp.take_along_axis(x, select[:, None, None], axis=1, mode="clip")
