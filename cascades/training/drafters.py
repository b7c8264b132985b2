"""What a drafter begins as: each factory returns a function of its verifier.

A drafter is an ordinary model: `launch/decode.py` takes it like any other, and no loop knows where it came from.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cascades import checkpoints, tokenizers
from cascades.checkpoints import Checkpoint
from cascades.checkpoints.load import descend
from cascades.checkpoints.sources import tokenizer_directory
from cascades.errors import UserError
from cascades.models import Config, DecoderConfig, build, preset
from cascades.training.architectures import Architecture
from cascades.typing import Array, Key, Params

__all__ = ["eagle", "own", "shallow"]


class Drafter(NamedTuple):
    """A drafter before it is trained.

    params: float32, but for what is frozen. frozen: names at the top of `params` that stay as they are. shared: of
    them, those that are the verifier's own.
    """

    config: Config
    params: Params
    frozen: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()


Kind = Callable[[Checkpoint, np.ndarray, Key[Array, ""]], Drafter]
"""(verifier, how often each token occurs in the answers, int `[v]`, key) -> its drafter."""


def shallow(layers: Sequence[int] = (0, -1), vocabulary: int | None = None) -> Kind:
    """A few layers of the verifier between its own embedding and head, which stay as they are.

    Args:
      layers: their numbers, from the front or, where negative, from the end.
      vocabulary: score so many tokens alone, those that the answers hold most often, with a copy of their part of the
        head, which is trained; a small model is little else than its head. No other token is ever drafted.
    """

    def begin(verifier: Checkpoint, counts: np.ndarray, key: Key[Array, ""]) -> Drafter:
        del key
        config = verifier.config
        if not isinstance(config, DecoderConfig):
            raise UserError("a shallow drafter is made of a decoder's layers, and the verifier is an encoder–decoder")
        count = config.num_layers
        wrong = [each for each in layers if type(each) is not int or not -count <= each < count]
        if wrong or not layers:
            raise UserError(
                f"shallow.layers must name some of the verifier's layers, from 0 to {count - 1} or from the end as -1, "
                f"not {tuple(layers)}"
            )
        chosen = [each % count for each in layers]
        local = tuple(config.is_local(each) for each in chosen) if config.local_layers else ()
        blocks = {str(at): verifier.params["layers"][str(each)] for at, each in enumerate(chosen)}
        trained = {"layers": blocks, "final_norm": verifier.params["final_norm"]}
        shared = {name: verifier.params[name] for name in ("embed", "head") if name in verifier.params}
        small = dataclasses.replace(config, num_layers=len(chosen), local_layers=local)
        if vocabulary is None:
            return Drafter(small, shared | _wide(trained), frozenset(shared), frozenset(shared))
        ids = _most_frequent(counts, vocabulary, config.vocab_size)
        matrix = shared["embed"]["embedding"] if config.tied_head else shared["head"]["kernel"]
        trained["head"] = {"kernel": matrix[ids]}
        fixed = {"embed": shared["embed"], "head_ids": jnp.asarray(ids)}
        small = dataclasses.replace(small, tied_head=False, head_tokens=vocabulary)
        return Drafter(small, fixed | _wide(trained), frozenset(fixed), frozenset({"embed"}))

    return begin


def eagle(layers: Sequence[int] = (-1,), vocabulary: int | None = 8192, uri: str | None = None) -> Kind:
    """A shallow drafter that also reads the verifier's hidden state of the token before each (EAGLE, arXiv 2401.15077).

    Args:
      layers, vocabulary: see `shallow`. uri: such a drafter of the same verifier to go on from; its head keeps what it
        learnt of the tokens that are scored again.
    """
    few = shallow(layers, vocabulary)

    def begin(verifier: Checkpoint, counts: np.ndarray, key: Key[Array, ""]) -> Drafter:
        small = few(verifier, counts, key)
        width = small.config.d_model
        assert isinstance(small.config, DecoderConfig)
        # What a layer adds, and the scale of the logits, begin small: they were made for another place, and begun as
        # they are, the first hundred steps only unlearn them.
        scale = jnp.array(verifier.params["final_norm"]["scale"], jnp.float32)
        new = {
            "token_norm": {"scale": jnp.ones((width,), jnp.float32)},
            "feature_norm": {"scale": scale},
            "fuse": {"kernel": jax.random.normal(key, (width, 2 * width), jnp.float32) * (2 * width) ** -0.5},
            "final_norm": {"scale": 0.3 * scale},
            "layers": _damped(small.params["layers"], post_norms=small.config.post_norms),
        }
        config = dataclasses.replace(small.config, reads_features=True)
        begun = small._replace(config=config, params=small.params | new)
        return begun if uri is None else _gone_on(begun, uri, verifier)

    return begin


def own(uri: str | None = None, architecture: str | Architecture | None = None, vocabulary: int | None = None) -> Kind:
    """A model of its own, all of it trained.

    Args:
      uri: a checkpoint to go on from. architecture: in its place, random weights: a name of `models.PRESETS` or a shape
        of `training.architectures`. vocabulary: of a decoder with random weights, see `shallow`.
    """

    def begin(verifier: Checkpoint, counts: np.ndarray, key: Key[Array, ""]) -> Drafter:
        if (uri is None) == (architecture is None):
            raise UserError("own needs a uri to go on from or an architecture to begin anew, and one of the two")
        if uri is not None:
            if vocabulary is not None:
                raise UserError("own.vocabulary is for random weights: a checkpoint keeps its head")
            tokenizer = tokenizers.load(tokenizer_directory(descend(checkpoints.resolve(uri))))
            tokenizers.check_same_vocabulary(tokenizer, tokenizers.load(verifier.path))
            config, params, _ = checkpoints.load(uri, dtype=jnp.float32)
        else:
            size = verifier.config.vocab_size
            config = architecture(size) if callable(architecture) else preset(architecture or "")
            config = dataclasses.replace(config, vocab_size=size)
            if vocabulary is not None:
                if not isinstance(config, DecoderConfig):
                    raise UserError("own.vocabulary is for decoders, and own.architecture is an encoder–decoder")
                config = dataclasses.replace(config, tied_head=False, head_tokens=vocabulary)
            params = build(config).init(key)
            if vocabulary is not None:
                params["head_ids"] = jnp.asarray(_most_frequent(counts, vocabulary, size))
        fixed = {name: params.pop(name) for name in ("head_ids",) if name in params}
        return Drafter(config, fixed | _wide(params), frozenset(fixed))

    return begin


def _gone_on(begun: Drafter, uri: str, verifier: Checkpoint) -> Drafter:
    """A drafter with the parameters of a trained one of its shape; the two heads may score other tokens."""
    config, known, _ = checkpoints.load(uri, dtype=jnp.float32, verifier=verifier.params)
    same = begun.config
    if isinstance(config, DecoderConfig) and isinstance(same, DecoderConfig):
        same = dataclasses.replace(same, head_tokens=config.head_tokens)
    if config != same:
        raise UserError(f"eagle.uri must be a drafter of this verifier with as many eagle.layers, and {uri} is not")
    trained = {name: leaf for name, leaf in known.items() if name not in (*begun.frozen, "head")}
    params = begun.params | _wide(trained)
    head = params["head"]["kernel"]
    if "head_ids" in known and "head_ids" in params:
        _, ours, theirs = np.intersect1d(params["head_ids"], known["head_ids"], return_indices=True)
        head = head.at[ours].set(known["head"]["kernel"][theirs].astype(jnp.float32))
    else:
        head = known["head"]["kernel"].astype(jnp.float32)
    return begun._replace(params=params | {"head": {"kernel": head}})


def _most_frequent(counts: np.ndarray, vocabulary: int, size: int) -> np.ndarray:
    """The tokens that occur most often, in order of their numbers."""
    if type(vocabulary) is not int or not 1 <= vocabulary <= size:
        raise UserError(f"a drafter's vocabulary must be from 1 to {size}, or None, not {vocabulary!r}")
    return np.sort(np.argsort(-counts, kind="stable")[:vocabulary]).astype(np.int32)


def _damped(layers: Params, *, post_norms: bool) -> Params:
    """Layers that add a tenth of what they did to what they are given."""
    last = ("post_attn_norm", "post_mlp_norm") if post_norms else ("o", "down")

    def damped(path, leaf: Array) -> Array:
        return 0.1 * leaf if any(getattr(key, "key", None) in last for key in path) else leaf

    return jax.tree_util.tree_map_with_path(damped, layers)


def _wide(params: Params) -> Params:
    """In float32 and in place of their own: what is trained is updated in place."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), params)
