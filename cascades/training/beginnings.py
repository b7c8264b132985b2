"""What a run trains, as it begins: a shape with random weights, or a checkpoint with its tokenizer."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cascades import checkpoints, hosts, tokenizers
from cascades.checkpoints import orbax
from cascades.checkpoints.load import descend, format_of
from cascades.checkpoints.sources import AnyPath, tokenizer_directory
from cascades.errors import UserError
from cascades.models import Config, DecoderConfig, abstract_params, build, logical_axes
from cascades.sharding import Layout
from cascades.tokenizers import Tokenizer
from cascades.training.architectures import Architecture
from cascades.typing import Array, Key, Params


class Beginning(NamedTuple):
    """A model before it is trained.

    source: where its tokenizer's files are. params: draws or reads its parameters, float32; nothing is, before.
    """

    config: Config
    tokenizer: Tokenizer
    source: pathlib.Path
    params: Callable[[], Params]


def of_shape(
    shape: Architecture, source: pathlib.Path, key: Key[Array, ""], *, chat_template: str | None = None
) -> Beginning:
    """A model with random weights.

    Args:
      source: of its tokenizer, see `tokenizers.load`. chat_template: the name of the one to use, where it has several.

    Raises:
      UserError: there is no tokenizer that can be read.
    """
    tokenizer = tokenizers.load(source, template=chat_template)
    config = shape(-(-tokenizer.vocab_size // 128) * 128)  # a head of whole tiles, which more chips can share
    return Beginning(config, tokenizer, source, lambda: build(config).init(key))


def of_checkpoint(
    uri: str,
    preset: str | None = None,
    source: pathlib.Path | None = None,
    *,
    chat_template: str | None = None,
    layout: Layout | None = None,
) -> Beginning:
    """A model that has learnt before, of any format that is known; weights that are quantised are taken as floats.

    Args:
      uri: see `checkpoints.resolve`. preset: its architecture by name, where the files do not say. source: of another
        tokenizer than its own. chat_template: as in `of_shape`. layout: where its parameters go, each tensor straight.

    Raises:
      UserError: it cannot be had, is no whole model, or has fewer tokens than the tokenizer. What `params` finds in the
        weights themselves it raises too.
    """
    path = descend(checkpoints.resolve(uri))
    config = checkpoints.read_config(path, preset)
    _check_whole(uri, path, config)
    source = source or tokenizer_directory(path)
    tokenizer = tokenizers.load(source, preset, chat_template)
    # A control token behind the logits stands for an image, of which a model of text alone knows nothing.
    if behind := {*range(config.vocab_size, tokenizer.vocab_size)} - tokenizer.control:
        raise UserError(
            f"the tokenizer at {source} has {tokenizer.vocab_size} tokens, and {uri} knows {config.vocab_size}, "
            f"without {tokenizer.pieces[min(behind)]!r}: give the TOKENIZER of that model, or leave it None"
        )
    places = None if layout is None else lambda like: layout.shardings(logical_axes(like), like)

    def params() -> Params:
        options = {"preset": preset, "shardings": places, "progress": hosts.leads()}
        return checkpoints.load(path, dtype=jnp.float32, **options).params

    return Beginning(config, tokenizer, source, params)


def blank(config: Config, layout: Layout | None) -> Params:
    """Returns zeros in place of parameters, for a run that goes on and has its own."""
    like = abstract_params(config)
    places = None if layout is None else layout.shardings(logical_axes(like), like)
    places = jax.tree.map(lambda _: None, like) if places is None else places
    return jax.tree.map(lambda leaf, place: jnp.zeros(leaf.shape, leaf.dtype, device=place), like, places)


def _check_whole(uri: str, path: AnyPath, config: Config) -> None:
    """Raises a UserError for a drafter that is made of another model's parts."""
    part = isinstance(config, DecoderConfig) and (config.reads_features or config.head_tokens is not None)
    if part or (format_of(path) is orbax and orbax.shared(path)):
        raise UserError(
            f"MODEL must be a whole model, and {uri} is a drafter made of its verifier's parts: train it on with "
            "launch/distill.py, or give the verifier"
        )
