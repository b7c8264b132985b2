"""One pair on one slice: what it takes, and what is worth drafting there."""

from collections.abc import Callable
from typing import Any, NamedTuple

from cascades.errors import UserError
from cascades.planning.chips import SLICES, Chip
from cascades.planning.passes import Cost, Side, Sizes, Whole, draft_cost, held, loop_of, verify_cost
from cascades.planning.speeds import best_k, by_length
from cascades.rules import Rule

Sides = tuple[Side, Side]  # verifier, drafter
SOURCE = "TPU compiler and published chip data; not measured"


class Fit(NamedTuple):
    """One slice. draft: a drafter step. verify: passes by width. needed: bytes on a chip. speedup: see `best_k`.

    verify is empty where weights and caches alone are too large: nothing was compiled. draft, and with it the figures
    of speed, are None where only the widest pass was.
    """

    topology: str
    chip: Chip
    chips: int
    needed: int
    draft: Cost | None = None
    verify: dict[int, Cost] = {}
    best_k: int | None = None
    speedup: float | None = None
    tokens_per_s: float | None = None

    @property
    def fits(self) -> bool:
        return self.needed <= self.chip.memory


def fit(
    topology: str, chip: Chip, pair: Sides, sizes: Sizes, rule: Rule, acceptance: float, *, widest: bool = False
) -> Fit:
    """Compiles the drafter's step and the verifier's passes at the widths of a round, or the widest pass alone."""
    needed = sum(sum(held(side, sizes)) for side in pair)
    bare = Fit(topology, chip, pair[0].place.mesh.size, needed)
    if not bare.fits:
        return bare
    loop, k_max = loop_of(*pair, sizes, rule), sizes.k_max
    if widest:
        last = verify_cost(loop, k_max + 1)
        return bare._replace(needed=needed + last.temporaries, verify={k_max + 1: last})
    widths = loop.plan.passes
    draft = draft_cost(loop)
    verify = {width: verify_cost(loop, width) for width in widths}
    largest = max(cost.temporaries for cost in (draft, *verify.values()))
    seconds = by_length({width: cost.seconds(chip) for width, cost in verify.items()}, k_max)
    k, speedup = best_k(acceptance, draft.seconds(chip) / seconds[0], [each / seconds[0] for each in seconds])
    return bare._replace(
        needed=needed + largest,
        draft=draft,
        verify=verify,
        best_k=k,
        speedup=speedup,
        tokens_per_s=sizes.batch * speedup / seconds[0],
    )


def smallest_slice(on: Callable[[str], tuple[Chip, Sides]], sizes: Sizes, kind: str) -> str | None:
    """Returns the smallest slice of a generation that holds weights and caches, by arithmetic alone."""
    for shape in SLICES[kind]:
        name = f"{kind}:{shape}"
        try:
            chip, pair = on(name)
        except UserError:  # fewer chips than ways to split the batch
            continue
        if sum(sum(held(side, sizes)) for side in pair) <= chip.memory:
            return name
    return None


def as_json(one: Fit, loop: Whole | None) -> dict[str, Any]:
    """Returns what is known of a slice, in bytes and seconds."""
    return {
        **{"topology": one.topology, "chips": one.chips, "memory": one.chip.memory, "needed": one.needed},
        **{"fits": one.fits, "best_k": one.best_k, "speedup": one.speedup, "tokens_per_s": one.tokens_per_s},
        "draft": cost_as_json(one.draft, one.chip) if one.draft else None,
        "verify": {str(width): cost_as_json(each, one.chip) for width, each in one.verify.items()},
        "loop": loop._asdict() if loop else None,
        "source": SOURCE,
    }


def cost_as_json(cost: Cost, chip: Chip) -> dict[str, Any]:
    """Returns what a step takes, in bytes and seconds."""
    return cost._asdict() | {"least": cost.least, "seconds": cost.seconds(chip)}
