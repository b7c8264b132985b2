"""A verifier and its drafter in memory."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cascades import cache as kv
from cascades import checkpoints, hosts, tokenizers
from cascades.checkpoints.load import descend
from cascades.checkpoints.sources import tokenizer_directory
from cascades.decoding.lookup import LookUp, look_up
from cascades.generation.placement import default_dtype
from cascades.generation.specs import ModelSpec, PairSpec
from cascades.models import build, logical_axes, pairing
from cascades.sharding import Layout
from cascades.tokenizers import Tokenizer
from cascades.typing import Model, Params


class LoadedModel(NamedTuple):
    """A model with its weights and tokenizer. name: its URI. layout: where it lives; None is one device.

    with_features: makes the same model with caches that keep the features a drafter reads; None where there is no such
    model.
    """

    name: str
    model: Model
    params: Params
    tokenizer: Tokenizer
    layout: Layout | None = None
    with_features: Callable[[], Model] | None = None


class LoadedPair(NamedTuple):
    """What decodes: `drafter` is None where the method needs none, or `lookup` drafts alone."""

    verifier: LoadedModel
    drafter: LoadedModel | None
    lookup: LookUp | None = None

    @property
    def drafts(self) -> str:
        """What drafts, for people."""
        named = [f"ngram://{self.lookup.order}"] if self.lookup else []
        return "+".join((*named, self.drafter.name) if self.drafter else named)


def load_pair(spec: PairSpec, *, chat_template: str | None = None) -> LoadedPair:
    """Loads both models; every tensor goes straight to its devices.

    Args:
      spec: a drafter's uri may also be `ngram://N`, which looks the last N tokens up in the text itself and needs no
        weights, or `ngram://N+URI`, which does both.
      chat_template: the name of the verifier's chat template to use, where it has several.

    Raises:
      UserError: a model cannot be had, or the two do not share a vocabulary.
    """
    verifier, drafter = spec.verifier, spec.drafter
    order, uri = pairing.split_drafter(None if drafter is None else str(drafter.uri))
    dtype, (place, drafter_place) = default_dtype(spec.dtype), spec.layouts()
    hosts.agree({"DTYPE, by the processor where it is None": jnp.dtype(dtype).name})
    large = _load(verifier, dtype, place, spec.kernels)
    large = large._replace(tokenizer=large.tokenizer.using(chat_template))
    pairing.check_verifier(large.model, large.name)
    if drafter is None:
        return LoadedPair(large, None)
    if uri is None:
        assert order is not None
        return LoadedPair(large, None, look_up(order))
    source = dataclasses.replace(drafter, uri=uri)
    if dataclasses.replace(source, strategy=verifier.strategy) == verifier and place == drafter_place:
        small = large
    else:
        tokenizer = tokenizers.load(tokenizer_directory(descend(checkpoints.resolve(uri))), drafter.preset)
        tokenizers.check_same_vocabulary(tokenizer, large.tokenizer)  # before the weights, which take longer
        small = _load(source, dtype, drafter_place, spec.kernels, tokenizer, verifier=large.params)
    pairing.check_starts(large.model, small.model, (large.name, small.name))
    if small.model.feature_width is not None:
        large = _with_features(large, small)
    return LoadedPair(large, small, None if order is None else look_up(order, alone=False))


def shared_vocabulary(pair: LoadedPair) -> int:
    """Returns how many logits both models have for the same tokens; those behind are padding."""
    size = min(pair.verifier.tokenizer.vocab_size, pair.verifier.model.vocab_size)
    if pair.drafter is None:
        return size
    common = tokenizers.check_same_vocabulary(pair.drafter.tokenizer, pair.verifier.tokenizer)
    return min(size, common, pair.drafter.model.vocab_size)


def _with_features(verifier: LoadedModel, drafter: LoadedModel) -> LoadedModel:
    """The verifier with caches that keep what its drafter reads."""
    assert verifier.with_features is not None
    model = verifier.with_features()
    pairing.check_features(model, drafter.model, (verifier.name, drafter.name))
    return verifier._replace(model=model)


def _load(
    spec: ModelSpec,
    dtype,
    layout: Layout | None,
    kernels: bool,
    tokenizer: Tokenizer | None = None,
    verifier: Params | None = None,
) -> LoadedModel:
    assert isinstance(spec.uri, str) and isinstance(spec.weights, str | None)  # as `PairSpec` has checked
    places = None if layout is None else lambda like: layout.shardings(logical_axes(like), like)
    checkpoint = checkpoints.load(
        spec.uri,
        dtype=dtype,
        preset=spec.preset,
        weights=spec.weights,
        shardings=places,
        progress=hosts.leads(),
        verifier=verifier,
    )
    tokenizer = tokenizer or tokenizers.load(checkpoint.path, spec.preset)
    bits = kv.BITS if jax.default_backend() == "cpu" and dtype == jnp.bfloat16 else None
    make = partial(build, checkpoint.config, dtype, layout, jnp.int8 if spec.cache else bits, kernels=kernels)
    return LoadedModel(spec.uri, make(), checkpoint.params, tokenizer, layout, partial(make, features=True))
