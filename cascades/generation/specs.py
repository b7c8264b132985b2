"""What a run is told of its models and prompts: small values, each field a knob, checked as they are made."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from cascades import checks
from cascades.errors import UserError
from cascades.generation.placement import check_dtype, check_strategy, mesh_for, mesh_sizes
from cascades.generation.settings import Settings
from cascades.quantization import KINDS
from cascades.sharding import Layout, layout

__all__ = ["ModelSpec", "PairSpec", "PromptSpec"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One model of a pair. It is checked by what it is part of, as its knobs are called VERIFIER or DRAFTER there.

    uri: where it comes from, see `checkpoints.resolve`; a drafter may also look words up, see `load_pair`. None is no
      model. A plan takes a list of several.
    preset: its architecture by name, where the files do not say.
    weights: "int8" quantises its matrices, "w8a8" also what they are multiplied with; None leaves them in the pair's
      dtype. A plan takes a list of several.
    cache: "int8" quantises its keys and values; None leaves them in the pair's dtype.
    strategy: where its weights live on the mesh, a name of `sharding.STRATEGIES`. A plan takes a list of several of its
      drafter's.
    """

    uri: str | Sequence[str] | None = None
    preset: str | None = None
    weights: str | Sequence[str | None] | None = None
    cache: str | None = None
    strategy: str | Sequence[str] = "tensor"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairSpec:
    """A verifier, its drafter, and what the two share.

    verifier, drafter: a drafter without a uri is none.
    dtype: "float32" or "bfloat16"; None is the fastest that the machine multiplies itself, see `default_dtype`.
    mesh: (data, model), how many ways batch and models are split over all devices; with model None, as many as are
      left. None is one device.
    kernels: whether TPUs attend to a cache by the package's Pallas kernel; False leaves it to XLA.

    Raises:
      UserError: a knob with a value that it cannot have.
    """

    verifier: ModelSpec
    drafter: ModelSpec | None = None
    dtype: str | None = None
    mesh: tuple[int, int | None] | None = None
    kernels: bool = True

    def __post_init__(self):
        verifier, drafter = self.verifier, self.drafter or ModelSpec()
        _uri("VERIFIER", verifier.uri, "")
        if drafter.uri is not None:
            _uri("DRAFTER", drafter.uri, ", or None")
        check_dtype(self.dtype)
        for prefix, model in (("", verifier), ("DRAFTER_", drafter)):
            check_quantization(model, prefix)
            check_strategy(f"{prefix}STRATEGY", model.strategy)
        if self.mesh is not None:
            mesh_sizes(self.mesh, 1)
        checks.switch("KERNELS", self.kernels)
        object.__setattr__(self, "drafter", None if drafter.uri is None else drafter)

    def needed(self, settings: Settings) -> "PairSpec":
        """Returns the pair that a method needs: without the drafter where that is the verifier alone.

        Raises:
          UserError: the method needs a drafter and there is none.
        """
        if not settings.needs_drafter:
            return dataclasses.replace(self, drafter=None)
        if self.drafter is None:
            raise UserError(f"METHOD='{settings.method}' needs a drafter: set DRAFTER, or METHOD='verifier_only'")
        return self

    def layouts(self, rows: int | None = None) -> tuple[Layout | None, Layout | None]:
        """Returns where verifier and drafter live: nowhere in particular without a mesh.

        Raises:
          UserError: see `placement.mesh_for`.
        """
        mesh = mesh_for(self.mesh, rows)
        if mesh is None:
            return None, None
        large, small = self.verifier.strategy, (self.drafter or self.verifier).strategy
        assert isinstance(large, str) and isinstance(small, str)  # as is checked above
        return layout(mesh, large), layout(mesh, small)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptSpec:
    """How a text becomes a prompt.

    raw_prompt: do not put a chat template around prompts.
    control_tokens: whether names of control tokens in a prompt become those tokens; None is in raw prompts alone.
    chat_template: the name of the one to use, where the verifier has several.

    Raises:
      UserError: a knob with a value that it cannot have.
    """

    raw_prompt: bool = False
    control_tokens: bool | None = None
    chat_template: str | None = None

    def __post_init__(self):
        checks.switch("RAW_PROMPT", self.raw_prompt)
        if not isinstance(self.control_tokens, bool | None):
            raise UserError(f"CONTROL_TOKENS must be True, False or None, not {self.control_tokens!r}")
        if not isinstance(self.chat_template, str | None):
            raise UserError(
                f"CHAT_TEMPLATE must be the name of a chat template in quotes or None, not {self.chat_template!r}"
            )


def check_quantization(model: ModelSpec, prefix: str = "") -> None:
    """Raises a UserError for a kind of weights or of cache that is not known."""
    if model.weights is not None and model.weights not in KINDS:
        raise UserError(f"{prefix}WEIGHTS must be {' or '.join(map(repr, KINDS))} or None, not {model.weights!r}")
    if model.cache not in (None, "int8"):
        raise UserError(f"{prefix}CACHE must be 'int8' or None, not {model.cache!r}")


def _uri(knob: str, uri: Any, otherwise: str) -> None:
    if not isinstance(uri, str) or not uri:
        raise UserError(f"{knob} must be a path or URI in quotes, as in --gin.{knob}=\"'hf://org/repo'\"{otherwise}")
