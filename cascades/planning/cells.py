"""A cell of a plan: one verifier at one size on one slice, and the models as they live there."""

from typing import Any, NamedTuple

from cascades.planning.chips import Chip, layout_on
from cascades.planning.fit import Sides
from cascades.planning.passes import Side
from cascades.planning.shapes import Planned
from cascades.sharding import STRATEGIES, Layout


class Cell(NamedTuple):
    """What one line of the plan is about."""

    verifier: Planned
    batch: int
    context: int
    topology: str

    def __str__(self) -> str:
        weights = self.verifier.spec.weights or "bfloat16"
        return f"{self.verifier.name} {weights}, batch {self.batch}, context {self.context}, on {self.topology}"


def pair_on(
    topology: str,
    *,
    models: tuple[Planned, Planned],
    data: int,
    model: int | None,
    kernels: bool,
    features: bool | None = None,
) -> tuple[Chip, Sides]:
    """Returns a slice's chip, and verifier and drafter as they live on all of the slice.

    Args:
      data, model: ways that the batch and the models are split, see `layout_on`. kernels: see `models.decoder`.
      features: whether the verifier's caches keep what a drafter reads; None is where this drafter reads it.
    """
    large, small = models
    assert isinstance(large.spec.strategy, str)
    chip, place = layout_on(topology, data, large.spec.strategy, model)

    def side(each: Planned, features: bool) -> Side:
        assert isinstance(each.spec.weights, str | None) and isinstance(each.spec.strategy, str)
        there = Layout(place.mesh, STRATEGIES[each.spec.strategy])
        return Side(each.config, there, each.spec.weights, each.spec.cache, kernels, features)

    reads = small.config.reads_features if features is None else features
    return chip, (side(large, reads), side(small, features=False))


def listed(value: Any) -> list[Any]:
    """Returns a knob's values, each once; an empty list is no value at all, which the checks refuse."""
    return list(dict.fromkeys(value)) if isinstance(value, list | tuple) and value else [value]
