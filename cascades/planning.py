"""What a pair costs on a TPU slice, by the TPU compiler itself: no TPU is needed, and nothing here is a measurement.

libtpu compiles for any slice on any machine. Each pass of a round is compiled for the slice, sharded as it would run;
its memory, floating-point operations and collectives are the compiler's own figures. Times are rooflines from published
chip data over what a pass must move at least: a lower bound, not a prediction.
"""

import importlib.util
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from rich import box
from rich.console import Console
from rich.table import Table

from cascades import lookahead, rules
from cascades.decoding import Plan
from cascades.errors import UserError
from cascades.models import DecoderConfig, abstract_params, decoder, logical_axes, preset
from cascades.sharding import STRATEGIES, Layout, layout, mesh_of


class Chip(NamedTuple):
    """Published data of a chip, from its page under cloud.google.com/tpu/docs.

    memory: bytes of HBM. bandwidth: its bytes per second. compute: bfloat16 operations per second. link: bytes per
    second of all its interchip links together.
    """

    memory: float
    bandwidth: float
    compute: float
    link: float


CHIPS = {
    "v4": Chip(32 * 2**30, 1.2e12, 275e12, 300e9),
    "v5e": Chip(16e9, 819e9, 197e12, 200e9),
    "v5p": Chip(95e9, 2765e9, 459e12, 600e9),
    "v6e": Chip(32e9, 1600e9, 918e12, 400e9),
}
_COLLECTIVES = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_SIZES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "pred": 1}
_SHAPE = r"(?:f32|s32|u32|bf16|f16|s8|u8|pred)\[[\d,]*\]"


class Cost(NamedTuple):
    """One pass on one chip, in bytes but for `flops`.

    weights, cache: what it holds, and must read once: their sum is the least that a pass can move. temporaries: beside
    them. aliased: buffers that are updated in place. counted: what the compiler counts as read and written; a cache
    that is updated in place and an embedding of which a few rows are read count as a whole. collectives: count and
    bytes by kind.
    """

    weights: int
    cache: int
    temporaries: int
    aliased: int
    counted: float
    flops: float
    collectives: dict[str, tuple[int, int]]

    def seconds(self, chip: Chip) -> float:
        """The least time: the slower of memory and arithmetic, and the collectives behind it."""
        sent = sum(size for _, size in self.collectives.values())
        return max((self.weights + self.cache) / chip.bandwidth, self.flops / chip.compute) + sent / chip.link


class Fit(NamedTuple):
    """One slice. draft: a drafter step. verify: passes by width. needed: bytes on a chip. speedup: see `best_k`."""

    topology: str
    chip: Chip
    draft: Cost
    verify: dict[int, Cost]
    needed: int
    best_k: int
    speedup: float

    @property
    def fits(self) -> bool:
        return self.needed <= self.chip.memory


def slice_devices(topology: str) -> tuple[Chip, list[Any]]:
    """Returns the chips of a slice such as `v5e:2x4`, for compiling only.

    Raises:
      UserError: an unknown generation or shape, or libtpu is not installed.
    """
    kind, _, shape = topology.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise UserError(
            f"a topology is a generation ({', '.join(CHIPS)}) and a shape, as in v5e:2x4 or v5p:2x2x1, not {topology!r}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("planning needs the TPU compiler, libtpu, which is not installed: pip install -e '.[tpu]'")
    try:
        options = {"chips_per_host_bounds": [1, 1, 1]} if math.prod(map(int, shape.split("x"))) == 1 else {}
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except Exception as error:  # whatever libtpu says, or that there is none
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"the TPU compiler does not know the slice {topology}: {reason}; try {kind}:2x2 or 2x4"
        ) from None
    return CHIPS[kind], list(found.devices)


def layout_on(topology: str, data: int, strategy: str) -> tuple[Chip, Layout]:
    """Returns a slice's chip and a layout over all of its chips, `data` of them along the batch."""
    chip, devices = slice_devices(topology)
    if len(devices) % data:
        raise UserError(f"the {len(devices)} chips of {topology} cannot be split {data} ways along the batch")
    return chip, layout(mesh_of(devices, data, len(devices) // data), strategy)


def pass_cost(config: DecoderConfig, place: Layout, batch: int, slots: int, width: int, dtype=jnp.bfloat16) -> Cost:
    """Compiles one pass of a model over `width` tokens a row, with full caches of `slots`, for a slice.

    Args:
      config: the model's shape. place: where it lives. batch: rows, over the whole slice.
    """
    model = decoder(config, dtype, place.constrain)
    params = abstract_params(config, dtype)
    params = _on(params, place.shardings(logical_axes(params), params))
    cache = jax.eval_shape(lambda: model.init_cache(batch, slots))

    def rows(leaf):
        axes = ("batch", "kv_heads", None, None) if leaf.ndim == 4 else ("batch", *(None,) * (leaf.ndim - 1))
        return place.sharding(axes, leaf.shape)

    cache = _on(cache, jax.tree.map(rows, cache))
    tokens = jax.ShapeDtypeStruct((batch, width), jnp.int32, sharding=place.sharding(("batch", None), (batch, width)))

    def run(params, tokens, cache):
        output, cache = model.extend(params, tokens, cache)
        return output.logits, cache

    compiled = jax.jit(run, donate_argnums=2).lower(params, tokens, cache).compile()
    memory, figures = compiled.memory_analysis(), compiled.cost_analysis()
    assert memory is not None and figures is not None
    return Cost(
        weights=_held(params),
        cache=_held(cache),
        temporaries=memory.temp_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        counted=figures["bytes accessed"],
        flops=figures["flops"],
        collectives=collectives(compiled.as_text() or ""),
    )


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """Returns count and bytes of results of each kind of collective in an HLO text."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for result, kind in re.findall(rf"= (\(?{_SHAPE}.*?) ({_COLLECTIVES})(?:-start)?\(", text):
        counts[kind] += 1
        shapes = re.findall(_SHAPE, result)
        sizes[kind] += _bytes(shapes[-1] if result.startswith("(") else shapes[0])
    return {kind: (counts[kind], sizes[kind]) for kind in sorted(counts)}


def _bytes(shape: str) -> int:
    kind, _, dims = shape.rstrip("]").partition("[")
    return _SIZES[kind] * math.prod(int(dim) for dim in dims.split(",") if dim)


def _on(tree: Any, places: Any) -> Any:
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, places)


def _held(tree: Any) -> int:
    """Bytes on one chip."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def plan(
    *,
    verifier: str,
    drafter: str,
    topology: str,
    batch_size: int = 8,
    context: int = 2048,
    k_max: int = 4,
    data: int = 1,
    strategy: str = "tensor",
    drafter_strategy: str = "tensor",
    acceptance: float = 0.8,
) -> list[Fit]:
    """Compiles a pair's passes for one slice or several, in bfloat16, and tells what they take.

    Args:
      verifier, drafter: names of presets; no weights are read. topology: slices, as in "v5e:2x4,v6e:2x4".
      batch_size, context: rows of the whole slice, and slots of each. k_max: longest draft.
      data: ways that the batch is split; the rest of the chips split the model. strategy, drafter_strategy: names of
        `sharding.STRATEGIES`.
      acceptance: per draft, at which the speed-up over the verifier alone is told.

    Raises:
      UserError: an unknown preset, slice or strategy, or figures that cannot be.
    """
    models = [preset(name) for name in (verifier, drafter)]
    for knob, name in (("STRATEGY", strategy), ("DRAFTER_STRATEGY", drafter_strategy)):
        if name not in STRATEGIES:
            raise UserError(f"{knob} must be one of {', '.join(STRATEGIES)}, not {name!r}")
    sizes = {"BATCH_SIZE": batch_size, "CONTEXT": context, "K_MAX": k_max, "DATA": data}
    for knob, size in sizes.items():
        if type(size) is not int or size < 1:
            raise UserError(f"{knob} must be a whole number from 1, not {size!r}")
    if not isinstance(acceptance, int | float) or not 0 <= acceptance <= 1:
        raise UserError(f"ACCEPTANCE must be a number from 0 to 1, not {acceptance!r}")
    if context > min(model.context_length for model in models):
        raise UserError(f"CONTEXT must be at most {min(m.context_length for m in models)}, which the models can hold")
    out, err = Console(), Console(stderr=True)
    found = []
    for name in topology.split(","):
        with err.status(f"compiling for {name}"):
            chip, large = layout_on(name.strip(), data, strategy)
            small = Layout(large.mesh, STRATEGIES[drafter_strategy])
            found.append(fit(name.strip(), chip, models, (large, small), batch_size, context, k_max, acceptance))
        out.print(table(found[-1]))
        verdict = "fits" if found[-1].fits else "DOES NOT FIT"
        out.print(
            f"{name.strip()}: {verdict}, {found[-1].needed / 1e9:.2f} of {chip.memory / 1e9:.1f} GB a chip. At an "
            f"acceptance of {acceptance:g} the best k is {found[-1].best_k}: {found[-1].speedup:.2f}x the verifier "
            "alone by the least times above (a bound by the TPU compiler's figures, not a measurement).",
            highlight=False,
        )
    return found


def fit(
    topology: str,
    chip: Chip,
    models: Sequence[DecoderConfig],
    places: Sequence[Layout],
    batch: int,
    slots: int,
    k_max: int,
    acceptance: float,
) -> Fit:
    """Compiles the drafter's step and the verifier's passes, at the widths that a round has."""
    some = decoder(models[0])
    widths = Plan(some, some, rules.lossless, lookahead.fixed(k_max), k_max, 1).widths
    draft = pass_cost(models[1], places[1], batch, slots, 1)
    verify = {width: pass_cost(models[0], places[0], batch, slots, width) for width in widths}
    largest = max(cost.temporaries for cost in (draft, *verify.values()))
    needed = verify[1].weights + verify[1].cache + draft.weights + draft.cache + largest
    seconds = [verify[next(w for w in widths if w > k)].seconds(chip) for k in range(k_max + 1)]
    k, speedup = best_k(acceptance, draft.seconds(chip) / seconds[0], [each / seconds[0] for each in seconds])
    return Fit(topology, chip, draft, verify, needed, k, speedup)


def best_k(acceptance: float, draft: float, verify: Sequence[float]) -> tuple[int, float]:
    """Returns argmax over k of (1 + a + … + a^k) / (k c + v_k), and its value (method.md, section 3)."""
    speeds = [sum(acceptance**i for i in range(k + 1)) / (k * draft + cost) for k, cost in enumerate(verify)]
    return max(range(len(speeds)), key=speeds.__getitem__), max(speeds)


def table(fit: Fit) -> Table:
    """Returns a row a pass."""
    drawn = Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=f"a chip of {fit.topology}")
    for name in ("pass", "weights GB", "cache GB", "temp GB", "GFLOP", "all-reduce", "other", "least ms"):
        drawn.add_column(name, justify="left" if name == "pass" else "right", no_wrap=True)
    passes = [("draft", fit.draft), *((f"verify {width}", cost) for width, cost in fit.verify.items())]
    for name, cost in passes:
        reduced, _ = cost.collectives.get("all-reduce", (0, 0))
        other = sum(count for kind, (count, _) in cost.collectives.items() if kind != "all-reduce")
        held = (f"{size / 1e9:.2f}" for size in (cost.weights, cost.cache, cost.temporaries))
        cells = (f"{cost.flops / 1e9:.1f}", str(reduced), str(other), f"{1e3 * cost.seconds(fit.chip):.2f}")
        drawn.add_row(name, *held, *cells)
    return drawn
