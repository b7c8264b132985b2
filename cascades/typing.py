"""Axis legend, array aliases and the contracts that every layer of the package shares.

Axes: `b` batch rows, `s` new tokens of one pass, `k` draft tokens, `t` slots of a KV cache, `n` tokens of a
row's buffer, `v` vocabulary, `l` layers, `d` model width, `f` MLP width, `q` query heads, `g` key/value heads,
`h` head size.

Notation: `q` is the drafter's next-token distribution, `p` the verifier's, `pi` the target that the emitted
token follows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from jaxtyping import Array, Bool, Float, Int, Key, UInt

Params = Any  # a nested dict of arrays
Cache = Any  # a pytree with a field `length: Int[Array, " b"]`; see `cascades.cache`

__all__ = ["Array", "Bool", "Branch", "Cache", "Float", "Int", "Key", "Model", "Output", "Params", "UInt"]


class Output(NamedTuple):
    """What one pass of a model returns.

    logits: raw next-token scores, float32, `[b, s, v]`, or `[b, 1, v]` where one position was selected.
    features: hidden states that the logits are made of, `[b, s, d]` or `[b, 1, d]`; None where the model offers none.
    """

    logits: Float[Array, "b s v"]
    features: Float[Array, "b s d"] | None = None


class Branch(NamedTuple):
    """New tokens of a pass that do not follow each other, or not all that the cache holds.

    positions: int32 `[b, s]`, of each token. visible: from the window of a layer (None on global layers) to which slots
    of the buffer each token sees, bool `[b, s, t]`, those where this pass puts the new tokens among them.
    """

    positions: Int[Array, "b s"]
    visible: Callable[[int | None], Bool[Array, "b s t"]]


class Extend(Protocol):
    """Appends tokens to every row of a cache and scores them."""

    def __call__(
        self,
        params: Params,
        tokens: Int[Array, "b s"],
        cache: Cache,
        select: Int[Array, " b"] | None = None,
        features: Float[Array, "b s d"] | None = None,
        branch: Branch | None = None,
    ) -> tuple[Output, Cache]:
        """Feeds `tokens[b, :]` at positions `cache.length[b], cache.length[b] + 1, …`.

        Args:
          params: the model's parameters.
          tokens: int32, `[b, s]`. Rows shorter than `s` are padded on the right; the caller rewinds the cache
            past the padding, and an entry behind a row's length is never attended to.
          cache: donated by the caller; its length tells where each row stands.
          select: where given, logits are computed at this index of each row only.
          features: for a model that reads them: for each token, the hidden state of the token before it.
          branch: of a decoder: where the tokens stand and what they see, if not each the token before it and all that
            the cache holds.

        Returns:
          The output, and the cache with `length + s`. Writes behind the end of the buffer are dropped.
        """
        ...


class Model(NamedTuple):
    """A language model as pure functions over a pytree of parameters.

    The decoding loop knows nothing else of a model, and cannot tell a decoder from an encoder-decoder.

    vocab_size: number of logits.
    context_length: most tokens that a row may hold.
    init: `key -> params`, random parameters.
    init_cache: `(batch, slots) -> cache`, empty.
    prefill: `(params, tokens[b, s], lengths[b], cache) -> cache`: fills an empty cache with the first `lengths[b]`
      tokens of each row (padding behind them is ignored) and leaves `cache.length == lengths`. It returns no
      logits: the last token of a prompt is not part of it, but the first token of the first round. A model that reads
      features is given them as a fifth argument, as in `Extend`.
    extend: see `Extend`.
    score: `(params, features[b, s, d], tokens[m] = None) -> logits[b, s, v]`: the scores that hidden states stand for;
      of some tokens alone, `[b, s, m]`, where the weights are plain arrays.
    start: the token that the answers of an encoder–decoder begin with; such a model reads a prompt by `prefill` alone.
      None for a decoder, which goes on with the prompt.
    feature_width: of the features that a drafter reads beside tokens: those that the verifier's cache keeps and, while
      it drafts, its own. None for a model of tokens alone.
    """

    vocab_size: int
    context_length: int
    init: Callable[[Key[Array, ""]], Params]
    init_cache: Callable[[int, int], Cache]
    prefill: Callable[..., Cache]
    extend: Callable[..., tuple[Output, Cache]]
    start: int | None = None
    score: Callable[..., Float[Array, "b s v"]] | None = None
    feature_width: int | None = None
