"""T5 (arXiv 1910.10683; the gated MLP of v1.1: arXiv 2002.05202): an encoder for the prompt, a decoder behind it.

The loop knows nothing of an encoder. A row's tokens are the encoder's input, the decoder's start token and what is
decoded; a prefill encodes what it is given (the loop holds the last token, the start token, back for the first round)
and every later pass feeds the decoder. Decoder tokens lie in the cache at their place in the row, behind slots of the
input that are never read: relative positions see distances only.

As published, attention scores are not scaled, and one table of relative position biases serves all layers of a stack.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from cascades import cache as kv
from cascades.models import attention, layers
from cascades.models.config import T5Config
from cascades.models.decoder import HEADS, HIDDEN, KV_HEADS, LOGITS, MLP
from cascades.sharding import Constrain
from cascades.typing import Array, Bool, Float, Int

BIAS = (None, "heads", None, None)


class T5Cache(NamedTuple):
    """What the decoder attends to.

    keys, values: of its own tokens, one `[b, g, t, h]` buffer a layer. cross_keys, cross_values: of the encoded input,
    likewise. encoded: int32 `[b]`, tokens of the input. length: int32 `[b]`, tokens of input and output together.
    """

    keys: tuple[kv.Buffer, ...]
    values: tuple[kv.Buffer, ...]
    cross_keys: tuple[kv.Buffer, ...]
    cross_values: tuple[kv.Buffer, ...]
    encoded: Int[Array, " b"]
    length: Int[Array, " b"]


def bucket(distance: Int[Array, "*x"], buckets: int, farthest: int, both: bool) -> Int[Array, "*x"]:
    """Returns the bucket of a distance: one each near by, logarithmic up to `farthest` (1910.10683, section 2.1).

    Args:
      distance: key position minus query position. buckets: how many there are. farthest: from there on all share one.
      both: whether keys behind the query are told apart from those before it (the encoder), or do not count.
    """
    offset = jnp.zeros_like(distance)
    if both:
        buckets //= 2
        offset = jnp.where(distance > 0, buckets, 0)
        distance = jnp.abs(distance)
    else:
        distance = -jnp.minimum(distance, 0)
    exact = buckets // 2
    ratio = jnp.maximum(distance, 1).astype(jnp.float32) / exact
    coarse = exact + (jnp.log(ratio) / math.log(farthest / exact) * (buckets - exact)).astype(jnp.int32)
    return offset + jnp.where(distance < exact, distance, jnp.minimum(coarse, buckets - 1))


class Attention(nnx.Module):
    """Multi-head attention without scaling."""

    def __init__(self, config: T5Config, *, dtype, rngs: nnx.Rngs | None):
        n, h, d = config.num_heads, config.head_dim, config.d_model
        self.q = layers.Linear((n, h), (d,), scale=h**-0.5, dtype=dtype, rngs=rngs)  # in place of a scaling
        self.k = layers.Linear((n, h), (d,), dtype=dtype, rngs=rngs)
        self.v = layers.Linear((n, h), (d,), dtype=dtype, rngs=rngs)
        self.o = layers.Linear((d,), (n, h), dtype=dtype, rngs=rngs)

    def project(
        self, y: Float[Array, "b s d"], constrain: Constrain
    ) -> tuple[Float[Array, "b g s h"], Float[Array, "b g s h"]]:
        """Keys and values of `y`."""
        k, v = constrain(self.k(y), KV_HEADS), constrain(self.v(y), KV_HEADS)
        return jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)

    def __call__(
        self,
        y: Float[Array, "b s d"],
        keys: kv.Buffer,
        values: kv.Buffer,
        mask: Bool[Array, "#b #s t"],
        bias: Float[Array, "#b q s t"] | None,
        constrain: Constrain,
    ) -> Float[Array, "b s d"]:
        attended = attention.attend(constrain(self.q(y), HEADS), keys, values, mask, bias=bias)
        return constrain(self.o(constrain(attended, HEADS)), HIDDEN)


class Feed(nnx.Module):
    """The MLP: gated GELU, or ReLU."""

    def __init__(self, config: T5Config, *, dtype, rngs: nnx.Rngs | None):
        d, f = config.d_model, config.d_ff
        if config.gated:
            self.gate = layers.Linear((f,), (d,), dtype=dtype, rngs=rngs)
        self.up = layers.Linear((f,), (d,), dtype=dtype, rngs=rngs)
        self.down = layers.Linear((d,), (f,), dtype=dtype, rngs=rngs)
        self.gated = config.gated

    def __call__(self, y: Float[Array, "b s d"], constrain: Constrain) -> Float[Array, "b s d"]:
        up = constrain(self.up(y), MLP)
        if self.gated:
            up = up * jax.nn.gelu(constrain(self.gate(y), MLP), approximate=True)
        else:
            up = jax.nn.relu(up)
        return constrain(self.down(up), HIDDEN)


class T5Layer(nnx.Module):
    """One layer of either stack: attention to its own tokens, in the decoder attention to the input, and the MLP.

    Each has its norm before it and its residual around it; the stacks differ in what they attend to.
    """

    def __init__(self, config: T5Config, *, crosses: bool, dtype, rngs: nnx.Rngs | None):
        norm = functools.partial(layers.RMSNorm, config.d_model, eps=config.norm_eps, rngs=rngs)
        self.attn_norm, self.attn = norm(), Attention(config, dtype=dtype, rngs=rngs)
        if crosses:
            self.cross_norm, self.cross = norm(), Attention(config, dtype=dtype, rngs=rngs)
        self.mlp_norm, self.mlp = norm(), Feed(config, dtype=dtype, rngs=rngs)


# As functions of their own, all layers of a stack are traced, and stand in the program's text, once.
@functools.partial(jax.jit, static_argnames="constrain")
def _encoder_layer(block: T5Layer, x: Float[Array, "b s d"], mask, bias, constrain: Constrain) -> Float[Array, "b s d"]:
    y = block.attn_norm(x)
    x = x + block.attn(y, *block.attn.project(y, constrain), mask, bias, constrain)
    return x + block.mlp(block.mlp_norm(x), constrain)


@functools.partial(jax.jit, static_argnames="constrain")
def _decoder_layer(
    block: T5Layer,
    x: Float[Array, "b s d"],
    own: tuple[kv.Buffer, kv.Buffer],
    cross: tuple[kv.Buffer, kv.Buffer],
    length: Int[Array, " b"],
    masks: tuple[Bool[Array, "b s t"], Bool[Array, "b 1 t"]],
    bias: Float[Array, "#b q s t"],
    constrain: Constrain,
) -> tuple[Float[Array, "b s d"], tuple[kv.Buffer, kv.Buffer]]:
    """Returns the layer's output, and its own keys and values with those of the new tokens. cross: of the input."""
    y = block.attn_norm(x)
    new = block.attn.project(y, constrain)
    keys, values = (
        attention.placed(attention.append(old, each, length), constrain) for old, each in zip(own, new, strict=True)
    )
    x = x + block.attn(y, keys, values, masks[0], bias, constrain)
    x = x + block.cross(block.cross_norm(x), *cross, masks[1], None, constrain)
    return x + block.mlp(block.mlp_norm(x), constrain), (keys, values)


class EncoderDecoder(nnx.Module):
    """Both stacks. With `rngs` None it holds shapes instead of arrays."""

    def __init__(self, config: T5Config, *, dtype, rngs: nnx.Rngs | None):
        def stack(count: int, crosses: bool) -> Any:  # nnx.Dict, whose own types no checker accepts
            return nnx.Dict({str(i): T5Layer(config, crosses=crosses, dtype=dtype, rngs=rngs) for i in range(count)})

        def table() -> nnx.Param[Any]:
            return layers.parameter((config.buckets, config.num_heads), jnp.float32, rngs, scale=config.d_model**-0.5)

        shape = (config.vocab_size, config.d_model)
        self.embed = nnx.Dict({"embedding": layers.parameter(shape, dtype, rngs, scale=1.0)})
        self.encoder, self.encoder_bias = stack(config.num_layers, False), table()
        self.decoder, self.decoder_bias = stack(config.num_decoder_layers, True), table()
        self.encoder_norm = layers.RMSNorm(config.d_model, eps=config.norm_eps, rngs=rngs)
        self.decoder_norm = layers.RMSNorm(config.d_model, eps=config.norm_eps, rngs=rngs)
        if not config.tied_head:
            self.head = layers.Linear((config.vocab_size,), (config.d_model,), dtype=dtype, rngs=rngs)
        self.config = config

    def encode(
        self, tokens: Int[Array, "b s"], lengths: Int[Array, " b"], cache: T5Cache, constrain: Constrain
    ) -> T5Cache:
        """Returns the cache with the keys and values of the encoded input in every decoder layer.

        Args:
          tokens: the input, of which each row has `lengths`. cache: its buffers are written at their beginning.
        """
        places = jnp.arange(tokens.shape[1], dtype=jnp.int32)
        mask = (places[None] < lengths[:, None])[:, None]
        bias = self._bias(self.encoder_bias, places[None], places, True, constrain)
        x = self._look_up(tokens, constrain)
        for block in self.encoder.values():
            x = _encoder_layer(block, x, mask, bias, constrain)
        x = self.encoder_norm(x)
        projected = [block.cross.project(x, constrain) for block in self.decoder.values()]

        def filled(buffers, new):
            written = (kv.fill(buffer, each) for buffer, each in zip(buffers, new, strict=True))
            return tuple(attention.placed(buffer, constrain) for buffer in written)

        return cache._replace(
            cross_keys=filled(cache.cross_keys, [keys for keys, _ in projected]),
            cross_values=filled(cache.cross_values, [values for _, values in projected]),
            encoded=lengths,
            length=lengths,
        )

    def decode(
        self, tokens: Int[Array, "b s"], cache: T5Cache, constrain: Constrain
    ) -> tuple[Float[Array, "b s d"], T5Cache]:
        """Returns the decoder's hidden states of the next tokens of each row, and the longer cache."""
        s, t = tokens.shape[1], cache.keys[0].shape[2]
        slots = jnp.arange(t, dtype=jnp.int32)
        places = cache.length[:, None] + jnp.arange(s, dtype=jnp.int32)[None]
        given = slots[None] < cache.encoded[:, None]
        mask, cross_mask = attention.visible(places, slots) & ~given[:, None], given[:, None]
        bias = self._bias(self.decoder_bias, places, slots, False, constrain)
        x = self._look_up(tokens, constrain)
        keys, values = [], []
        for i, block in enumerate(self.decoder.values()):
            own, cross = (cache.keys[i], cache.values[i]), (cache.cross_keys[i], cache.cross_values[i])
            x, (k, v) = _decoder_layer(block, x, own, cross, cache.length, (mask, cross_mask), bias, constrain)
            keys.append(k)
            values.append(v)
        return x, cache._replace(keys=tuple(keys), values=tuple(values), length=cache.length + s)

    def logits(
        self, x: Float[Array, "b s d"], constrain: Constrain, tokens: Int[Array, " m"] | None = None
    ) -> Float[Array, "b s v"]:
        """Scores of the next token, float32; of `tokens` alone where they are given, `[b, s, m]`."""
        x = self.decoder_norm(x)
        if self.config.scaled_head:
            x = x * jnp.asarray(self.config.d_model**-0.5, x.dtype)
        matrix = (self.embed["embedding"] if self.config.tied_head else self.head.kernel).get_value()
        matrix = matrix if tokens is None else matrix[tokens]
        return constrain(layers.contract(x, matrix, out_dtype=jnp.float32), LOGITS)

    def _look_up(self, tokens: Int[Array, "b s"], constrain: Constrain) -> Float[Array, "b s d"]:
        return constrain(layers.lookup(self.embed["embedding"].get_value(), tokens), HIDDEN)

    def _bias(
        self,
        table: nnx.Param[Any],
        queries: Int[Array, "#b s"],
        keys: Int[Array, " t"],
        both: bool,
        constrain: Constrain,
    ) -> Float[Array, "#b q s t"]:
        config = self.config
        buckets = bucket(keys[None, None, :] - queries[:, :, None], config.buckets, config.max_distance, both)
        return constrain(jnp.moveaxis(table.get_value()[buckets], -1, 1), BIAS)
