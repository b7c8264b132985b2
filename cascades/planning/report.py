"""Plans a pair on slices: the run function of `launch/plan.py`."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from cascades import lookahead, rules
from cascades.decoding import Plan
from cascades.errors import UserError
from cascades.experiments import records
from cascades.experiments.decode import check_weights
from cascades.models import DecoderConfig, decoder, preset
from cascades.planning.chips import SLICES, Chip, layout_on, slices
from cascades.planning.passes import Cost, Side, Sizes, Whole, draft_cost, held, verify_cost, whole_cost
from cascades.rules import Rule
from cascades.sharding import STRATEGIES, Layout

Pair = tuple[Side, Side]  # verifier, drafter


class Fit(NamedTuple):
    """One slice. draft: a drafter step. verify: passes by width. needed: bytes on a chip. speedup: see `best_k`.

    draft and verify are None where weights and caches alone are too large: nothing was compiled.
    """

    topology: str
    chip: Chip
    chips: int
    needed: int
    draft: Cost | None = None
    verify: dict[int, Cost] | None = None
    best_k: int = 0
    speedup: float = 0.0
    tokens_per_s: float = 0.0

    @property
    def fits(self) -> bool:
        return self.needed <= self.chip.memory


def plan(
    *,
    verifier: str,
    drafter: str,
    topology: str,
    rule: Rule = rules.token_v3,
    batch_size: int = 8,
    context: int = 2048,
    k_max: int = 4,
    data: int = 1,
    strategy: str = "tensor",
    drafter_strategy: str = "tensor",
    weights: str | None = None,
    drafter_weights: str | None = None,
    acceptance: float = 0.8,
    whole: bool = False,
    output: str | None = None,
) -> list[Fit]:
    """Compiles a pair's steps for one slice or several, in bfloat16, and tells what they take.

    Args:
      verifier, drafter: names of presets; no weights are read. topology: slices, as in "v5e:2x4,v6e:2x4", or "all".
      rule: what judges the drafts. batch_size, context: rows of the whole slice, and slots of each. k_max: longest
        draft.
      data: ways that the batch is split; the rest of the chips split the model. strategy, drafter_strategy: names of
        `sharding.STRATEGIES`. weights, drafter_weights: "int8", or None.
      acceptance: per draft, at which the speed-up over the verifier alone is told.
      whole: compile the whole loop too, which takes minutes for large models.
      output: a JSONL file that gets a line for each slice.

    Raises:
      UserError: an unknown preset, slice or strategy, or figures that cannot be.
    """
    configs = preset(verifier), preset(drafter)
    sizes = _sizes(configs, batch_size, context, k_max)
    _check(data, strategy, drafter_strategy, acceptance, whole)
    check_weights(weights, drafter_weights)

    def on(name: str) -> tuple[Chip, Pair]:
        chip, large = layout_on(name, data, strategy)
        small = Layout(large.mesh, STRATEGIES[drafter_strategy])
        return chip, (Side(configs[0], large, weights), Side(configs[1], small, drafter_weights))

    if output is not None:
        records.check_writable(output)
    out, err = Console(), Console(stderr=True)
    found: list[Fit] = []
    file = records.open_append(output) if output is not None else None
    try:
        for name in slices(topology):
            with err.status(f"compiling for {name}"):
                chip, pair = on(name)
                one = fit(name, chip, pair, sizes, rule, acceptance)
                loop = whole_cost(*pair, sizes, rule) if whole and one.fits else None
            found.append(one)
            smallest = smallest_slice(on, sizes, name.partition(":")[0])
            _tell(out, one, loop, acceptance, smallest)
            if file:
                about = {"verifier": verifier, "drafter": drafter, "rule": rule.__name__, "data": data}
                about |= {"strategy": strategy, "drafter_strategy": drafter_strategy, "acceptance": acceptance}
                about |= {"weights": weights, "drafter_weights": drafter_weights}
                records.append(file, about | sizes._asdict() | as_json(one, loop) | {"smallest": smallest})
    finally:
        if file:
            file.close()
    if len(found) > 1:
        out.print(comparison(found, acceptance))
    out.print("Every figure is the TPU compiler's, and times are bounds from published chip data: no measurement.")
    return found


def fit(
    topology: str,
    chip: Chip,
    pair: Pair,
    sizes: Sizes,
    rule: Rule,
    acceptance: float,
) -> Fit:
    """Compiles the drafter's step and the verifier's passes, at the widths that a round has."""
    needed = sum(sum(held(side, sizes)) for side in pair)
    bare = Fit(topology, chip, pair[0].place.mesh.size, needed)
    if not bare.fits:
        return bare
    some = decoder(pair[0].config)
    k_max = sizes.k_max
    widths = Plan(some, some, rules.lossless, lookahead.fixed(k_max), k_max, 1).widths
    draft = draft_cost(pair[1], sizes)
    verify = {width: verify_cost(pair[0], sizes, width, rule) for width in widths}
    largest = max(cost.temporaries for cost in (draft, *verify.values()))
    seconds = [verify[next(w for w in widths if w > k)].seconds(chip) for k in range(k_max + 1)]
    k, speedup = best_k(acceptance, draft.seconds(chip) / seconds[0], [each / seconds[0] for each in seconds])
    return bare._replace(
        needed=needed + largest,
        draft=draft,
        verify=verify,
        best_k=k,
        speedup=speedup,
        tokens_per_s=sizes.batch * speedup / seconds[0],
    )


def best_k(acceptance: float, draft: float, verify: Sequence[float]) -> tuple[int, float]:
    """Returns argmax over k of (1 + a + … + a^k) / (k c + v_k), and its value (method.md, section 3)."""
    speeds = [sum(acceptance**i for i in range(k + 1)) / (k * draft + cost) for k, cost in enumerate(verify)]
    return max(range(len(speeds)), key=speeds.__getitem__), max(speeds)


def smallest_slice(on: Callable[[str], tuple[Chip, Pair]], sizes: Sizes, kind: str) -> str | None:
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

    def cost(each: Cost) -> dict[str, Any]:
        return each._asdict() | {"least": each.least, "seconds": each.seconds(one.chip)}

    return {
        **{"topology": one.topology, "chips": one.chips, "memory": one.chip.memory, "needed": one.needed},
        **{"fits": one.fits, "best_k": one.best_k, "speedup": one.speedup, "tokens_per_s": one.tokens_per_s},
        "draft": cost(one.draft) if one.draft else None,
        "verify": {str(width): cost(each) for width, each in (one.verify or {}).items()},
        "loop": loop._asdict() if loop else None,
        "source": "TPU compiler and published chip data; not measured",
    }


def table(one: Fit) -> Table:
    """Returns a row a step."""
    title = f"a chip of {one.topology}: GB held, bytes moved over the least, rules' share"
    drawn = Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title)
    names = ("step", "weights", "cache", "temp", "moved", "rules", "GFLOP", "all-reduce", "other", "ms")
    for name in names:
        drawn.add_column(name, justify="left" if name == "step" else "right", no_wrap=True)
    assert one.draft is not None and one.verify is not None
    for name, cost in [("draft", one.draft), *((f"verify {width}", cost) for width, cost in one.verify.items())]:
        reduced, _ = cost.collectives.get("all-reduce", (0, 0))
        other = sum(count for kind, (count, _) in cost.collectives.items() if kind != "all-reduce")
        drawn.add_row(
            name,
            *(f"{size / 1e9:.2f}" for size in (cost.weights, cost.cache, cost.temporaries)),
            f"{cost.moved / cost.least:.2f}x",
            f"{cost.chosen / cost.moved:.1%}",
            f"{cost.flops / 1e9:.1f}",
            str(reduced),
            str(other),
            f"{1e3 * cost.seconds(one.chip):.2f}",
        )
    return drawn


def comparison(found: Sequence[Fit], acceptance: float) -> Table:
    """Returns a row a slice."""
    drawn = Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=f"acceptance {acceptance:g}")
    for name in ("slice", "chips", "fits", "GB a chip", "of", "alone ms", "best k", "speed-up", "tokens/s"):
        drawn.add_column(name, justify="left" if name == "slice" else "right", no_wrap=True)
    for one in found:
        cells = ["–"] * 4
        if one.verify is not None:
            alone = f"{1e3 * one.verify[1].seconds(one.chip):.2f}"
            cells = [alone, str(one.best_k), f"{one.speedup:.2f}x", f"{one.tokens_per_s:.0f}"]
        sizes = (f"{one.needed / 1e9:.2f}", f"{one.chip.memory / 1e9:.0f}")
        drawn.add_row(one.topology, str(one.chips), "yes" if one.fits else "no", *sizes, *cells)
    return drawn


def _tell(out: Console, one: Fit, loop: Whole | None, acceptance: float, smallest: str | None) -> None:
    if one.verify is not None:
        out.print(table(one))
    verdict = "fits" if one.fits else "DOES NOT FIT"
    text = f"{one.topology}: {verdict}, {one.needed / 1e9:.2f} of {one.chip.memory / 1e9:.1f} GB a chip"
    kind = one.topology.partition(":")[0]
    text += (
        f"; the smallest {kind} slice that holds weights and caches is {smallest or 'larger than any planned for'}. "
    )
    if one.verify is not None:
        text += (
            f"At an acceptance of {acceptance:g} the best k is {one.best_k}: {one.speedup:.2f}x the verifier alone and "
            f"{one.tokens_per_s:.0f} tokens/s at most."
        )
    if loop is not None:
        text += (
            f" The loop carries {loop.state / 1e9:.2f} GB, updates {loop.aliased / 1e9:.2f} GB of them in place, and "
            f"takes {loop.temporaries / 1e9:.2f} GB of temporaries."
        )
    out.print(text, highlight=False)


def _sizes(pair: Sequence[DecoderConfig], batch_size: Any, context: Any, k_max: Any) -> Sizes:
    for knob, size in {"BATCH_SIZE": batch_size, "CONTEXT": context, "K_MAX": k_max}.items():
        if type(size) is not int or size < 1:
            raise UserError(f"{knob} must be a whole number from 1, not {size!r}")
    if context > min(model.context_length for model in pair):
        raise UserError(f"CONTEXT must be at most {min(m.context_length for m in pair)}, which the models can hold")
    return Sizes(batch_size, context, min(model.vocab_size for model in pair), k_max)


def _check(data: Any, strategy: str, drafter_strategy: str, acceptance: Any, whole: Any) -> None:
    for knob, name in (("STRATEGY", strategy), ("DRAFTER_STRATEGY", drafter_strategy)):
        if name not in STRATEGIES:
            raise UserError(f"{knob} must be one of {', '.join(STRATEGIES)}, not {name!r}")
    if type(data) is not int or data < 1:
        raise UserError(f"DATA must be a whole number from 1, not {data!r}")
    if not isinstance(acceptance, int | float) or not 0 <= acceptance <= 1:
        raise UserError(f"ACCEPTANCE must be a number from 0 to 1, not {acceptance!r}")
    if not isinstance(whole, bool):
        raise UserError(f"WHOLE must be True or False, not {whole!r}")
