"""A verifier and its drafter in memory."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp

from cascades import checkpoints, hosts, tokenizers
from cascades.checkpoints.sources import tokenizer_directory
from cascades.models import build, logical_axes, pairing
from cascades.models.ngram import assisted, ngram
from cascades.sharding import Layout
from cascades.tokenizers import Tokenizer
from cascades.typing import Model, Params


class Language(NamedTuple):
    """A model with its weights and tokenizer. name: its URI. layout: where it lives; None is one device.

    keeping: makes the same model with caches that keep the features a drafter reads; None where there is no such model.
    """

    name: str
    model: Model
    params: Params
    tokenizer: Tokenizer
    layout: Layout | None = None
    keeping: Callable[[], Model] | None = None


class Pair(NamedTuple):
    """What decodes: `drafter` is None where the method needs none."""

    verifier: Language
    drafter: Language | None


def load_pair(
    verifier: str,
    drafter: str | None,
    *,
    verifier_preset: str | None = None,
    drafter_preset: str | None = None,
    dtype=jnp.float32,
    weights: str | None = None,
    drafter_weights: str | None = None,
    cache: str | None = None,
    drafter_cache: str | None = None,
    kernels: bool = True,
    layout: Layout | None = None,
    drafter_layout: Layout | None = None,
    chat_template: str | None = None,
) -> Pair:
    """Loads both models.

    Args:
      verifier, drafter: URIs, see `checkpoints.resolve`. A drafter may also be `ngram://N`, which looks the last N
        tokens up in the text itself and needs no weights, or `ngram://N+URI`, which does both.
      verifier_preset, drafter_preset: architectures, where the files do not say.
      dtype: of the weights, float32 or bfloat16. weights, drafter_weights: one of
        `quantization.KINDS`, or None. cache, drafter_cache: "int8" quantises keys and values.
      kernels: see `models.decoder`.
      layout, drafter_layout: where they live, on one mesh; every tensor goes straight to its devices.
      chat_template: the name of the verifier's chat template to use, where it has several.

    Raises:
      UserError: a model cannot be had, or the two do not share a vocabulary.
    """
    name, (order, drafter) = drafter, pairing.split_drafter(drafter)
    large = _load(verifier, verifier_preset, dtype, weights, cache, layout, kernels)
    large = large._replace(tokenizer=large.tokenizer.using(chat_template))
    pairing.check_verifier(large.model, verifier)
    if name is None:
        return Pair(large, None)
    if drafter is None:
        assert order is not None
        model = ngram(large.model.vocab_size, large.model.context_length, order)
        return Pair(large, Language(name, model, {}, large.tokenizer))
    chosen = drafter, drafter_preset, drafter_weights, drafter_cache, drafter_layout
    if chosen == (verifier, verifier_preset, weights, cache, layout):
        small = large
    else:
        tokenizer = tokenizers.load(tokenizer_directory(checkpoints.resolve(drafter)), drafter_preset)
        tokenizers.check_same_vocabulary(tokenizer, large.tokenizer)  # before the weights, which take longer
        knobs = drafter_preset, dtype, drafter_weights, drafter_cache, drafter_layout, kernels
        small = _load(drafter, *knobs, verifier=large.params)
    pairing.check_starts(large.model, small.model, (verifier, drafter))
    if small.model.reads is not None:
        large = _keeping(large, small)
    if order is not None:
        small = small._replace(name=name, model=assisted(small.model, order))
    return Pair(large, small)


def shared_vocabulary(pair: Pair) -> int:
    """Returns how many logits both models have for the same tokens; those behind are padding."""
    size = min(pair.verifier.tokenizer.vocab_size, pair.verifier.model.vocab_size)
    if pair.drafter is None:
        return size
    common = tokenizers.check_same_vocabulary(pair.drafter.tokenizer, pair.verifier.tokenizer)
    return min(size, common, pair.drafter.model.vocab_size)


def _keeping(verifier: Language, drafter: Language) -> Language:
    """The verifier with caches that keep what its drafter reads."""
    assert verifier.keeping is not None
    model = verifier.keeping()
    pairing.check_features(model, drafter.model, (verifier.name, drafter.name))
    return verifier._replace(model=model)


def _load(
    uri: str,
    preset: str | None,
    dtype,
    weights: str | None,
    cache: str | None,
    layout: Layout | None,
    kernels: bool,
    verifier: Params | None = None,
) -> Language:
    places = None if layout is None else lambda like: layout.shardings(logical_axes(like), like)
    checkpoint = checkpoints.load(
        uri,
        dtype=dtype,
        preset=preset,
        weights=weights,
        shardings=places,
        progress=hosts.leads(),
        verifier=verifier,
    )
    tokenizer = tokenizers.load(checkpoint.path, preset)
    make = partial(build, checkpoint.config, dtype, layout, jnp.int8 if cache else None, kernels=kernels)
    return Language(uri, make(), checkpoint.params, tokenizer, layout, partial(make, features=True))
