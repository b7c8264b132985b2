"""The shape of a model that is planned, without its weights."""

import pathlib
import re
from typing import NamedTuple

from cascades import checkpoints
from cascades.errors import UserError
from cascades.generation import ModelSpec
from cascades.models import PRESETS, Config, DecoderConfig, pairing, preset


class Planned(NamedTuple):
    """A model of a plan. name: of its preset, or else where its files are."""

    name: str
    config: Config
    spec: ModelSpec


def planned(knob: str, spec: ModelSpec) -> Planned:
    """Returns a model by a preset's name, by what its local files say, or by the preset that is named beside it.

    Args:
      knob: VERIFIER or DRAFTER. spec: of it.

    Raises:
      UserError: nothing tells its shape, or it is of a kind that cannot be planned.
    """
    uri = spec.uri
    if not isinstance(uri, str) or not uri:
        raise UserError(f"{knob} must be a preset, a path or a URI in quotes, as in --gin.{knob}=\"'gemma2_2b'\"")
    order, _ = pairing.split_drafter(uri)
    if order is not None:
        beside = "" if knob == "VERIFIER" else ", or name both, as in ['gemma2_2b', 'ngram://3'],"
        raise UserError(f"a look-up takes no pass that could be planned: give a model as {knob}{beside} not {uri}")
    if uri.startswith("shipped://") or pathlib.Path(uri).expanduser().exists() and uri not in PRESETS:
        name, config = uri, checkpoints.read_config(uri, spec.preset)
    elif re.fullmatch(r"\w+", uri) or spec.preset is not None:
        name = uri if uri in PRESETS or spec.preset is None else spec.preset
        config = preset(name)
    elif "://" in uri:
        raise UserError(
            f"a plan fetches no weights, so the shape of {uri} must be told: set {knob}_PRESET, as in "
            f"--gin.{knob}_PRESET=\"'gemma2_2b'\""
        )
    else:
        name, config = uri, checkpoints.read_config(uri)  # which says that there is no such file
    if config.reads_features and knob == "VERIFIER":
        raise UserError(f"{uri} is a drafter that reads another model's hidden states: it cannot be a VERIFIER")
    return Planned(name, config, spec)


def check_pair(verifier: Planned, drafter: Planned) -> None:
    """Raises a UserError unless both are of one kind, and a drafter that reads hidden states for one of this width."""
    large, small = verifier.config, drafter.config
    if type(large) is not type(small):
        kinds = [
            "a decoder" if isinstance(config, DecoderConfig) else "an encoder–decoder" for config in (large, small)
        ]
        raise UserError(
            f"{verifier.name} is {kinds[0]} and {drafter.name} {kinds[1]}: a pair reads its prompts in the same way"
        )
    if small.reads_features and small.d_model != large.d_model:
        raise UserError(
            f"{drafter.name} was made for another verifier: it reads hidden states of {small.d_model} numbers, and "
            f"those of {verifier.name} have {large.d_model}"
        )
