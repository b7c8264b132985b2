"""Plans pairs on slices: the run function of `launch/plan.py`."""

import dataclasses
import itertools
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from rich.console import Console

from cascades import checks, rules
from cascades.errors import UserError
from cascades.generation import ModelSpec, records
from cascades.generation.placement import check_strategy, mesh_sizes
from cascades.generation.specs import check_quantization
from cascades.planning.cells import Cell, listed, pair_on
from cascades.planning.chips import layout_on, slices
from cascades.planning.fit import as_json, fit, smallest_slice
from cascades.planning.passes import Sizes, loop_of, whole_cost
from cascades.planning.report import comparison, grid, show, tell
from cascades.planning.shapes import Planned, check_pair, planned
from cascades.rules import Rule
from cascades.runs.plan_drafters import jobs_of, plan_drafters, several
from cascades.training.drafters import Kind

NAMED_MODULES = ("cascades.training.drafters", "cascades.training.architectures")
RENAMED = {"DATA": "MESH, as in MESH=(2, None) for two ways along the batch"}


def plan(
    *,
    verifier: ModelSpec,
    drafter: ModelSpec,
    topology: str,
    kind: Kind | Sequence[Kind] | None = None,
    mesh: tuple[int, int | None] | None = None,
    kernels: bool = True,
    rule: Rule = rules.token_v3,
    batch_size: int | Sequence[int] = 8,
    context: int | Sequence[int] = 2048,
    k_max: int = 4,
    acceptance: float = 0.8,
    whole: bool = False,
    widest: bool = False,
    output: str | None = None,
) -> list[dict[str, Any]]:
    """Compiles a pair's steps for one slice or several, in bfloat16, and tells what they take.

    Args:
      verifier, drafter: see `shapes.planned`; no weights are read. The drafter's uri and strategy may be lists; a uri
        of None is none.
      kind: kinds of drafter of `training.drafters`, one or a list. Where there is any, or a list of drafters, the plan
        is a table of what each would win, see `plan_drafters`.
      topology: slices, as in "v5e:2x4,v6e:2x4", or "all".
      mesh: (data, model), of which data are the ways that the batch is split; the models take the chips that are left.
        None is (1, None). kernels: see `models.decoder`.
      rule: what judges the drafts. batch_size, context: rows of the whole slice, and slots of each. k_max: longest
        draft.
      acceptance: per draft, at which the speed-up over the verifier alone is told.
      whole: compile the whole loop too, which takes minutes for large models.
      widest: compile the verifier's pass over k_max + 1 tokens and nothing else, as a table of many cells needs.
      output: a JSONL file that gets a line for each cell; those that it holds already are not compiled again.
      The verifier's uri and weights, batch_size and context may be lists: there is a cell for every combination.

    Returns:
      What is known of every cell, as written to `output`.

    Raises:
      UserError: an unknown preset, slice or strategy, or figures that cannot be.
    """
    checks.number("ACCEPTANCE", acceptance, 0.0, 1.0)
    for knob, value in {"WHOLE": whole, "WIDEST": widest, "KERNELS": kernels}.items():
        checks.switch(knob, value)
    data, model = (1, None) if mesh is None else (mesh_sizes(mesh, 1)[0], mesh[1])
    made = [each for each in listed(kind) if each is not None]
    table = several(drafter, made)
    check_quantization(drafter, "DRAFTER_")
    check_strategy("STRATEGY", verifier.strategy)
    assert isinstance(verifier.strategy, str)
    for strategy in listed(drafter.strategy):
        check_strategy("DRAFTER_STRATEGY", strategy)
    if table and (whole or widest):
        raise UserError("a table of drafters compiles single passes of its own: leave WHOLE and WIDEST False")
    large = [_verifier(verifier, *each) for each in itertools.product(listed(verifier.uri), listed(verifier.weights))]
    cells = [Cell(*each) for each in itertools.product(large, listed(batch_size), listed(context), slices(topology))]
    sized = partial(_sizes, k_max=k_max)
    jobs = jobs_of(cells, drafter, made, sized) if table else []
    small = None if table else planned("DRAFTER", drafter)
    if small:
        for each in large:
            check_pair(each, small)
    sizes = {cell: sized(cell, [small]) for cell in cells} if small else {}
    if output is not None:
        records.check_writable(output)
    for name in slices(topology):
        layout_on(name, data, verifier.strategy, model)  # what is wrong is told before the first is compiled for
    placed = partial(pair_on, data=data, model=model, kernels=kernels)
    shared: dict[str, Any] = {"rule": rule.__name__, "data": data, "strategy": verifier.strategy, "kernels": kernels}
    shared |= {"drafter_weights": drafter.weights, "cache": verifier.cache, "drafter_cache": drafter.cache}
    if small is None:
        return plan_drafters(jobs, placed, rule, shared, output)
    shared |= {"drafter": small.name, "drafter_strategy": drafter.strategy}
    shared |= {"acceptance": acceptance, "whole": whole, "widest": widest}
    known = {_identity(record): record for record in (records.load(output) if output is not None else [])}
    out, err = Console(), Console(stderr=True)
    lines: list[dict[str, Any]] = []
    file = records.open_append(output) if output is not None else None
    began = time.perf_counter()
    try:
        for number, cell in enumerate(cells, 1):
            about = {"verifier": cell.verifier.name, "weights": cell.verifier.spec.weights, "topology": cell.topology}
            about |= shared | sizes[cell]._asdict()
            if (record := known.get(_identity(about))) is None:
                on = partial(placed, models=(cell.verifier, small))
                with err.status(f"compiling {number} of {len(cells)}: {cell}"):
                    chip, pair = on(cell.topology)
                    fitted = fit(cell.topology, chip, pair, sizes[cell], rule, acceptance, widest=widest)
                    loop = whole_cost(loop_of(*pair, sizes[cell], rule)) if whole and fitted.fits else None
                smallest = smallest_slice(on, sizes[cell], cell.topology.partition(":")[0])
                record = (
                    about | as_json(fitted, loop) | {"smallest": smallest, "layers": cell.verifier.config.num_layers}
                )
                if file:
                    records.append(file, record)
                if not widest:
                    tell(out, fitted, loop, acceptance, smallest)
                elif not err.is_terminal:
                    err.print(f"{number} of {len(cells)} done, {time.perf_counter() - began:.0f} s", highlight=False)
            lines.append(record)
    finally:
        if file:
            file.close()
    if widest:
        show(out, grid(lines, k_max + 1))
    elif len(lines) > 1:
        show(out, comparison(lines, acceptance))
    out.print("Every figure is the TPU compiler's, and times are bounds from published chip data: no measurement.")
    return lines


def _identity(record: dict[str, Any]) -> tuple[Any, ...]:
    """What tells a cell's line in `output` from the others."""
    keys = ("verifier", "drafter", "rule", "data", "strategy", "drafter_strategy", "acceptance", "topology")
    kinds = ("weights", "drafter_weights", "cache", "drafter_cache", "kernels", "whole", "widest")
    return tuple(record.get(key) for key in (*keys, *kinds, *Sizes._fields))


def _verifier(spec: ModelSpec, uri: Any, weights: Any) -> Planned:
    spec = dataclasses.replace(spec, uri=uri, weights=weights)
    check_quantization(spec)
    return planned("VERIFIER", spec)


def _sizes(cell: Cell, drafters: Sequence[Planned], k_max: Any) -> Sizes:
    models = [each.config for each in (cell.verifier, *drafters)]
    for knob, size in {"BATCH_SIZE": cell.batch, "CONTEXT": cell.context, "K_MAX": k_max}.items():
        checks.whole(knob, size, 1)
    if cell.context > min(model.context_length for model in models):
        raise UserError(f"CONTEXT must be at most {min(m.context_length for m in models)}, which the models can hold")
    return Sizes(cell.batch, cell.context, min(model.vocab_size for model in models), k_max)
