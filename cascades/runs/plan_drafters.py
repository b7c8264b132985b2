"""Plans several drafters for a verifier: what each would win on a slice, before any of them is trained."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console

from cascades.errors import UserError
from cascades.generation import ModelSpec, records
from cascades.models import DecoderConfig, pairing
from cascades.planning import kinds
from cascades.planning.cells import Cell, listed
from cascades.planning.chips import Chip
from cascades.planning.fit import SOURCE, Sides, cost_as_json
from cascades.planning.passes import Sizes, draft_cost, held, loop_of, verify_cost
from cascades.planning.report import drafters, show
from cascades.planning.shapes import Planned, check_pair, planned
from cascades.planning.speeds import worth
from cascades.rules import Rule
from cascades.runs import fingerprint
from cascades.training.drafters import Kind

On = Callable[..., tuple[Chip, Sides]]
"""`cells.pair_on` of a mesh."""


class Job(NamedTuple):
    """A cell, and the drafters that are planned for its verifier.

    look_ups: their names; they take no pass. features: whether the verifier keeps what one of the drafters reads.
    """

    cell: Cell
    drafters: list[Planned]
    look_ups: list[str]
    features: bool
    sizes: Sizes


def several(drafter: ModelSpec, made: Sequence[Kind]) -> bool:
    """Whether a plan is a table of drafters."""
    return bool(made) or any(isinstance(each, list | tuple) for each in (drafter.uri, drafter.strategy))


def jobs_of(
    cells: Sequence[Cell], drafter: ModelSpec, made: Sequence[Kind], sizes: Callable[[Cell, list[Planned]], Sizes]
) -> list[Job]:
    """Returns what is to be planned, each drafter under each strategy; nothing is compiled.

    Args:
      drafter: its uri and strategy may be lists. made: kinds that distill makes. sizes: of a cell and its drafters.

    Raises:
      UserError: a drafter that cannot be, or no model at all.
    """
    for kind in made:
        kinds.check_kind(kind)
    uris = [uri for uri in listed(drafter.uri) if uri is not None]
    look_ups = [uri for uri in uris if isinstance(uri, str) and pairing.split_drafter(uri)[1] is None]
    there = [planned("DRAFTER", dataclasses.replace(drafter, uri=uri)) for uri in uris if uri not in look_ups]
    if not there and not made:
        raise UserError("a table of drafters needs a model: set DRAFTER to one, or KIND to kinds that distill makes")
    jobs = []
    for cell in cells:
        models = there + [_made(kind, cell.verifier, drafter) for kind in made]
        for each in models:
            check_pair(cell.verifier, each)
        each_way = [_under(strategy, each) for each in models for strategy in listed(drafter.strategy)]
        reads = any(each.config.reads_features for each in models)
        jobs.append(Job(cell, each_way, look_ups, reads, sizes(cell, models)))
    return jobs


def plan_drafters(
    jobs: Sequence[Job], on: On, rule: Rule, shared: Mapping[str, Any], output: str | None
) -> list[dict[str, Any]]:
    """Compiles the verifier's passes once a cell and a step of each drafter, and tells what they are worth.

    Args:
      shared: what all lines have in common. output: a JSONL file that gets a line for each drafter of a cell; those
        that it holds already are not compiled again.

    Returns:
      A record for each drafter of each cell, with what `speeds.worth` says of it.
    """
    out, err = Console(), Console(stderr=True)
    known = {_identity(each): each for each in (records.load(output) if output is not None else [])}
    lines: list[dict[str, Any]] = []
    file = records.open_append(output) if output is not None else None
    began = time.perf_counter()
    try:
        for number, job in enumerate(jobs, 1):
            with err.status(f"compiling {number} of {len(jobs)}: {job.cell}"):
                for new, record in _records(job, on, rule, shared, known):
                    if new and file:
                        records.append(file, record)
                    lines.append(record)
            if not err.is_terminal:
                err.print(f"{number} of {len(jobs)} done, {time.perf_counter() - began:.0f} s", highlight=False)
    finally:
        if file:
            file.close()
    show(out, drafters(lines))
    out.print(
        "Every figure is the TPU compiler's, and times are bounds from published chip data: no measurement. What it "
        "takes to begin an operation or a collective is not in them, which can be most of a very small step. *Trees "
        "stand under a law that is assumed: see cascades/planning/trees.py."
    )
    return lines


def _records(
    job: Job, on: On, rule: Rule, shared: Mapping[str, Any], known: Mapping[tuple, dict[str, Any]]
) -> Iterator[tuple[bool, dict[str, Any]]]:
    """Yields each drafter's record, and whether it is new. The verifier's passes are those of the first."""
    cell, sizes = job.cell, job.sizes
    about: dict[str, Any] = {"verifier": cell.verifier.name, "weights": cell.verifier.spec.weights}
    about |= {**shared, **sizes._asdict(), "topology": cell.topology, "features": job.features}
    verify: dict[str, Any] = {}
    for each in job.drafters:
        own = about | {"drafter": each.name, "drafter_strategy": each.spec.strategy}
        own |= {"shape": fingerprint.digest(dataclasses.asdict(each.config))}
        record = known.get(_identity(own))
        if new := record is None:
            chip, pair = on(cell.topology, models=(cell.verifier, each), features=job.features)
            record = own | _compiled(chip, pair, sizes, rule, verify)
        verify = verify or record["verify"]
        yield new, _worth(record)
    for name in job.look_ups:
        own = about | {"drafter": name, "drafter_strategy": None, "shape": None}
        record = known.get(_identity(own))
        yield record is None, _worth(record or own | {"held": 0, "draft": None, "verify": verify, "source": SOURCE})


def _compiled(chip: Chip, pair: Sides, sizes: Sizes, rule: Rule, verify: dict[str, Any]) -> dict[str, Any]:
    """What a drafter of a pair takes, and the verifier's passes: `verify`, or where it is empty compiled too."""
    verifier, drafter = (sum(held(side, sizes)) for side in pair)
    needed, step = verifier + drafter, None
    if needed <= chip.memory:
        loop = loop_of(*pair, sizes, rule)
        verify = verify or {str(width): cost_as_json(verify_cost(loop, width), chip) for width in loop.plan.passes}
        step = cost_as_json(draft_cost(loop), chip)
        needed += max(cost["temporaries"] for cost in (step, *verify.values()))
    fits = needed <= chip.memory
    about = {"chips": pair[0].place.mesh.size, "memory": chip.memory, "needed": needed, "held": drafter, "fits": fits}
    return about | {"draft": step, "verify": verify if fits else {}, "source": SOURCE}


def _worth(record: dict[str, Any]) -> dict[str, Any]:
    """A record with what its passes are worth, where they were compiled."""
    if not record["verify"]:
        return record
    look_up = record["shape"] is None
    verify = {int(width): cost["seconds"] for width, cost in record["verify"].items()}
    return record | worth(0.0 if look_up else record["draft"]["seconds"], verify, record["k_max"], trees=not look_up)


def _made(kind: Kind, verifier: Planned, spec: ModelSpec) -> Planned:
    if not isinstance(verifier.config, DecoderConfig):
        raise UserError(f"{kinds.name_of(kind)} drafts for a decoder, and {verifier.name} is an encoder–decoder")
    config, name = kinds.config_of(kind, verifier.config), kinds.name_of(kind)
    if not isinstance(config, DecoderConfig):
        raise UserError(f"{name} makes an encoder–decoder for {verifier.name}, but a decoder was expected")
    return Planned(kinds.described(name, config), config, spec)


def _under(strategy: str, drafter: Planned) -> Planned:
    return drafter._replace(spec=dataclasses.replace(drafter.spec, strategy=strategy))


def _identity(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells a drafter's line in `output` from the others."""
    keys = ("verifier", "weights", "strategy", "cache", "topology", "data", "rule", "kernels", "features")
    own = ("drafter", "shape", "drafter_strategy", "drafter_weights", "drafter_cache")
    return tuple(record.get(key) for key in (*keys, *own, *Sizes._fields))
