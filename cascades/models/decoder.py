"""One decoder-only transformer for Gemma 1, 2 and 3, Llama and Qwen2: the families differ by config fields.

Layers are unrolled: on CPUs a scan over stacked weights copies each layer's weights at every step.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from cascades import cache as kv
from cascades.models import attention, decode_attention, layers
from cascades.models.config import DecoderConfig
from cascades.sharding import Constrain, anywhere
from cascades.typing import Array, Bool, Branch, Float, Int

HIDDEN = ("batch", None, None)
HEADS = ("batch", None, "heads", None)
KV_HEADS = ("batch", None, "kv_heads", None)
MLP = ("batch", None, "mlp")
LOGITS = ("batch", None, "vocab")


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("rotation", "mask", "start", "end"),
    meta_fields=("window", "constrain", "kernel"),
)
@dataclasses.dataclass(frozen=True)
class View:
    """What the global layers of one pass share, or the sliding ones. The last three fields are static.

    rotation: cosine and sine of the new positions.
    mask: which slots of the buffer each new token sees.
    start: in a prefill, the slot of every row's first new token; None where each goes on behind its own length.
    end: no row sees a slot from there on; None where nothing is known.
    window: size of the sliding window; None on global layers.
    constrain: says where activations live.
    kernel: `decode_attention.placed`, for TPUs; None leaves attention to XLA.
    """

    rotation: tuple[Array, Array]
    mask: Bool[Array, "b s t"]
    start: Int[Array, ""] | None
    end: Int[Array, ""] | None
    window: int | None
    constrain: Constrain
    kernel: Callable[..., Array] | None


class DecoderLayer(nnx.Module):
    """One layer: attention through the cache, then a gated MLP, each with its norms and residual."""

    def __init__(self, config: DecoderConfig, *, dtype, rngs: nnx.Rngs | None):
        n, g, h = config.num_heads, config.num_kv_heads, config.head_dim
        d, f, eps = config.d_model, config.d_ff, config.norm_eps
        self.attn_norm = layers.RMSNorm(d, eps=eps, rngs=rngs)
        self.q = layers.Linear((n, h), (d,), bias=config.qkv_bias, dtype=dtype, rngs=rngs)
        self.k = layers.Linear((g, h), (d,), bias=config.qkv_bias, dtype=dtype, rngs=rngs)
        self.v = layers.Linear((g, h), (d,), bias=config.qkv_bias, dtype=dtype, rngs=rngs)
        self.o = layers.Linear((d,), (n, h), dtype=dtype, rngs=rngs)
        self.mlp_norm = layers.RMSNorm(d, eps=eps, rngs=rngs)
        self.gate = layers.Linear((f,), (d,), dtype=dtype, rngs=rngs)
        self.up = layers.Linear((f,), (d,), dtype=dtype, rngs=rngs)
        self.down = layers.Linear((d,), (f,), dtype=dtype, rngs=rngs)
        if config.qk_norm:
            self.q_norm = layers.RMSNorm(h, eps=eps, rngs=rngs)
            self.k_norm = layers.RMSNorm(h, eps=eps, rngs=rngs)
        if config.post_norms:
            self.post_attn_norm = layers.RMSNorm(d, eps=eps, rngs=rngs)
            self.post_mlp_norm = layers.RMSNorm(d, eps=eps, rngs=rngs)
        self.config = config

    def __call__(
        self,
        x: Float[Array, "b s d"],
        view: View,
        keys: kv.Buffer,
        values: kv.Buffer,
        length: Int[Array, " b"],
    ) -> tuple[Float[Array, "b s d"], kv.Buffer, kv.Buffer]:
        """Returns the layer's output and its two buffers with the new tokens in them."""
        y = self.attn_norm(x)
        y, keys, values = self.attend(y, view, keys, values, length)
        x = x + (self.post_attn_norm(y) if self.config.post_norms else y)
        y = self.mlp(self.mlp_norm(x), view)
        return x + (self.post_mlp_norm(y) if self.config.post_norms else y), keys, values

    def attend(self, y, view: View, keys, values, length):
        config = self.config
        q = view.constrain(self.q(y), HEADS)
        k, v = view.constrain(self.k(y), KV_HEADS), view.constrain(self.v(y), KV_HEADS)
        if config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        scale = config.head_dim**-0.5 if config.query_scale is None else config.query_scale
        q = layers.rotate(q, view.rotation) * scale
        k = jnp.swapaxes(layers.rotate(k, view.rotation), 1, 2)
        v = jnp.swapaxes(v, 1, 2)
        attended, keys, values = self.attend_cache(q, k, v, keys, values, view, length)
        keys, values = attention.placed(keys, view.constrain), attention.placed(values, view.constrain)
        return view.constrain(self.o(view.constrain(attended, HEADS)), HIDDEN), keys, values

    def attend_cache(self, q, k, v, keys: kv.Buffer, values: kv.Buffer, view: View, length):
        """Attention to the cache and the new tokens, which it takes in; returns its two buffers too."""
        cap, mask = self.config.attn_softcap, view.mask
        if view.start is not None:
            keys, values = kv.fill(keys, k, view.start), kv.fill(values, v, view.start)
            return attention.attend(q, keys, values, mask, cap, end=view.end), keys, values

        def plain(q, k, v, keys, values, length):
            keys, values = attention.append(keys, k, length), attention.append(values, v, length)
            return attention.attend(q, keys, values, mask, cap, end=view.end), keys, values

        given = q, k, v, keys, values, length
        if view.kernel is None or not decode_attention.takes(keys):
            return plain(*given)
        kernel = partial(view.kernel, window=view.window, cap=cap)
        return lax.platform_dependent(*given, tpu=kernel, default=plain)

    def mlp(self, y: Float[Array, "b s d"], view: View) -> Float[Array, "b s d"]:
        gate = layers.activate(view.constrain(self.gate(y), MLP), self.config.activation)
        return view.constrain(self.down(gate * view.constrain(self.up(y), MLP)), HIDDEN)


_layer = jax.jit(
    DecoderLayer.__call__
)  # so that all layers of a kind are traced, and stand in the program's text, once


class Embedding(nnx.Module):
    """The token table."""

    def __init__(self, config: DecoderConfig, *, dtype, rngs: nnx.Rngs | None):
        shape = (config.vocab_size, config.d_model)
        self.embedding = layers.parameter(shape, dtype, rngs, scale=config.d_model**-0.5)


class Decoder(nnx.Module):
    """The transformer: embedding, blocks, final norm, head. With `rngs` None it holds shapes instead of arrays."""

    def __init__(self, config: DecoderConfig, *, dtype, rngs: nnx.Rngs | None):
        self.embed = Embedding(config, dtype=dtype, rngs=rngs)
        if config.reads_features:
            d = config.d_model
            self.token_norm = layers.RMSNorm(d, eps=config.norm_eps, rngs=rngs)
            self.feature_norm = layers.RMSNorm(d, eps=config.norm_eps, rngs=rngs)
            self.fuse = layers.Linear((d,), (2 * d,), dtype=dtype, rngs=rngs)
        self.layers = nnx.Dict({str(i): DecoderLayer(config, dtype=dtype, rngs=rngs) for i in range(config.num_layers)})
        self.final_norm = layers.RMSNorm(config.d_model, eps=config.norm_eps, rngs=rngs)
        if not config.tied_head:
            scored = config.head_tokens or config.vocab_size
            self.head = layers.Linear((scored,), (config.d_model,), dtype=dtype, rngs=rngs)
        if config.head_tokens:
            ids = (config.head_tokens,)
            self.head_ids = nnx.Param(jax.ShapeDtypeStruct(ids, jnp.int32) if rngs is None else jnp.arange(*ids))
        self.config = config

    def hidden(
        self,
        tokens: Int[Array, "b s"],
        cache: kv.KVCache,
        *,
        start: Int[Array, ""] | None = None,
        constrain: Constrain = anywhere,
        kernel: Callable[..., Array] | None = None,
        features: Float[Array, "b s d"] | None = None,
        branch: Branch | None = None,
    ) -> tuple[Float[Array, "b s d"], kv.KVCache]:
        """Runs every layer; returns the last one's output before the final norm, and the cache with `length + s`.

        start: in a prefill, where every row stands; `s` tokens from there are inside the buffer. None leaves each row
        where its length is. features, branch: see `typing.Extend`. A cache that keeps features takes in the output.
        """
        config = self.config
        s = tokens.shape[1]
        if branch is None:
            first = cache.length if start is None else jnp.broadcast_to(start, cache.length.shape)
            positions = first[:, None] + jnp.arange(s, dtype=jnp.int32)[None, :]
            slots = jnp.arange(cache.keys[0].shape[2], dtype=jnp.int32)
            end = jnp.max(positions) + 1
            views = self.views(positions, partial(attention.visible, positions, slots), start, end, constrain, kernel)
        else:
            views = self.views(branch.positions, branch.visible, None, None, constrain, None)
        x = constrain(layers.lookup(self.embed.embedding.get_value(), tokens), HIDDEN)
        if config.embed_scale:
            x = x * jnp.asarray(config.d_model**0.5, x.dtype)
        if config.reads_features:
            assert features is not None, "a model that reads features is given some"
            both = jnp.concatenate([self.token_norm(x), self.feature_norm(features.astype(x.dtype))], axis=-1)
            x = constrain(self.fuse(both), HIDDEN)
        keys, values = [], []
        for i in range(config.num_layers):
            view = views[config.is_local(i)]
            x, k, v = _layer(self.layers[str(i)], x, view, cache.keys[i], cache.values[i], cache.length)
            keys.append(k)
            values.append(v)
        kept = cache.features
        if kept is not None:
            new = x[:, None]
            kept = attention.write(kept, new, cache.length) if start is None else kv.put(kept, new, start)
            kept = constrain(kept, attention.CACHE)
        return x, kv.KVCache(tuple(keys), tuple(values), cache.length + s, kept)

    def logits(
        self, x: Float[Array, "b s d"], constrain: Constrain = anywhere, tokens: Int[Array, " m"] | None = None
    ) -> Float[Array, "b s v"]:
        """Scores of the next token, float32; of `tokens` alone where they are given, `[b, s, m]`."""
        matrix = (self.embed.embedding if self.config.tied_head else self.head.kernel).get_value()
        known: Any = self.head_ids.get_value() if self.config.head_tokens else None
        places = tokens
        if tokens is not None:
            if known is not None:
                places = jnp.clip(jnp.searchsorted(known, tokens), max=known.size - 1)
            matrix = matrix[places]
        logits = constrain(layers.contract(self.final_norm(x), matrix, out_dtype=jnp.float32), LOGITS)
        logits = layers.softcap(logits, self.config.final_softcap)
        if known is None:
            return logits
        if tokens is not None:
            return jnp.where(known[places] == tokens, logits, layers.MASKED)
        nowhere = jnp.full((*logits.shape[:2], self.config.vocab_size), layers.MASKED, jnp.float32)
        return nowhere.at[:, :, known].set(logits, unique_indices=True, indices_are_sorted=True)

    def views(
        self,
        positions: Int[Array, "b s"],
        visible: Callable[[int | None], Bool[Array, "b s t"]],
        start: Int[Array, ""] | None,
        end: Int[Array, ""] | None,
        constrain: Constrain,
        kernel: Callable[..., Array] | None,
    ) -> dict[bool, View]:
        """The rotations and masks of global (False) and sliding (True) layers, each built once a pass."""
        config = self.config
        views = {}
        for local in sorted({config.is_local(i) for i in range(config.num_layers)}):
            theta, scaling, window = config.rope_theta, config.rope_scaling, None
            if local:
                window = config.window
                if config.local_rope_theta is not None:
                    # A second base means that the long-context scaling is the global layers' alone (Gemma 3).
                    theta, scaling = config.local_rope_theta, None
            frequencies = layers.rope_frequencies(config.head_dim, theta, scaling)
            rotation = layers.rotation(positions, frequencies)
            views[local] = View(rotation, visible(window), start, end, window, constrain, kernel)
        return views
