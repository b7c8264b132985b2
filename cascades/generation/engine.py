"""The shapes of a run and the programs compiled for them."""

import concurrent.futures
import contextlib
import dataclasses
import gc
import pathlib
import time
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cascades import hosts, lookahead
from cascades.decoding import FREE, Origin, Plan, Programs, Request, State, advance_sequential, compile_plan
from cascades.decoding.plan import fine_widths
from cascades.decoding.round import advance
from cascades.distributions import Sampling
from cascades.errors import UserError
from cascades.generation.clock import Belief
from cascades.generation.pair import LoadedModel, LoadedPair, shared_vocabulary
from cascades.generation.settings import Settings
from cascades.lookahead import Costs, given_costs
from cascades.rules import lossless
from cascades.typing import Params

READS = ("speculative", "oracle_cascade", "verifier_only")  # methods in which the verifier sees every token at once
_CONTEXT = 512  # buffers are as long as the smallest of 512, 1024, 2048, … that holds a row: few programs serve all
_MANY = 2000  # tokens of a slot for which a few more passes are compiled
_ENCODED = 64  # the same for what an encoder reads, which reads all of its padding too


class Shapes(NamedTuple):
    """What is static of a run: rows, and slots of every buffer."""

    batch: int
    slots: int


@dataclasses.dataclass
class Compiled:
    """Programs of one set of shapes.

    starts: prefills of one row, by the width of the prompt: a decoder has one, an encoder as many as were needed.
    vacant, insert, run: see `Programs`. costs: what the lookahead goes by: given, or measured and corrected. seconds:
    spent compiling and measuring. belief: what passes take, by the clock; None where nobody asks. reached: how far the
    passes of its loop have attended so far, see `clock.reach`, each with its place among the widths.
    """

    shapes: Shapes
    starts: dict[int, Any]
    vacant: Any
    insert: Any
    run: Any
    costs: Costs
    seconds: float
    belief: Belief | None = None
    reached: set[tuple[float, int]] = dataclasses.field(default_factory=set)


class Engine(NamedTuple):
    """A plan for a pair, and the weights in the places that the programs expect them.

    context: most tokens of a row, see `holders`. compiled: what was compiled so far, by shapes. parts: the engines of
    a sequence cascade's two models, by method. learnt: the state of a lookahead that `learns`, of one row, with which
    rows begin; nothing until one has ended. born: the clock when it was built; what happens is told in seconds from
    then on. memory: a folder that keeps what engines have learnt, see `memory`; None keeps nothing.
    """

    settings: Settings
    pair: LoadedPair
    programs: Programs
    verifier_params: Params
    drafter_params: Params
    context: int
    compiled: dict[Shapes, Compiled]
    parts: dict[str, "Engine"]
    learnt: list[Any]
    born: float
    memory: pathlib.Path | None = None


def build(
    pair: LoadedPair, settings: Settings, tokens: int | None = None, *, memory: pathlib.Path | None = None
) -> Engine:
    """Returns the engine of `settings.method`; of a sequence cascade, the one of its drafter.

    Args:
      tokens: about how many each slot will decode. For few it is not worth it to compile more passes than are needed.
      memory: a folder of what earlier engines have learnt, from which this one begins and to which it adds.

    Raises:
      UserError: the method needs a drafter and the pair has none, or the models cannot hold the context.
    """
    speculative = settings.method == "speculative"
    if settings.needs_drafter and pair.drafter is None and not (speculative and pair.lookup):
        raise UserError(
            f"METHOD='{settings.method}' needs a drafter: set DRAFTER, or METHOD='verifier_only'"
            if pair.lookup is None
            else f"METHOD='{settings.method}' asks a model, and a look-up is none: set DRAFTER, or METHOD='speculative'"
        )
    alone = settings.method in ("verifier_only", "drafter_only", "sequence_cascade")
    verifier = pair.verifier if settings.method == "verifier_only" or not alone else pair.drafter
    drafter = None if alone else pair.drafter
    assert verifier is not None
    if pair.drafter and pair.drafter.model.feature_width is not None and settings.method not in READS:
        raise UserError(
            f"{pair.drafter.name} reads what its verifier makes of every token, so it cannot run in "
            f"METHOD='{settings.method}': METHOD is one of {', '.join(READS)}, or choose another DRAFTER"
        )
    oracle = settings.method == "oracle_cascade"
    plan = Plan(
        verifier=verifier.model,
        drafter=drafter.model if drafter else None,
        rules=(lossless,) if alone else (settings.rule, *settings.more_rules),
        lookahead=lookahead.fixed(0) if alone or oracle else settings.lookahead,  # pyright: ignore[reportArgumentType]
        k_max=0 if alone else 1 if oracle else settings.k_max,
        vocab_size=shared_vocabulary(pair),
        eos=pair.verifier.tokenizer.eos_ids,
        coupling=settings.coupling,  # pyright: ignore[reportArgumentType]
        bonus="target" if oracle else settings.bonus,  # pyright: ignore[reportArgumentType]
        alone=Origin.VERIFIER if settings.method == "verifier_only" else Origin.DRAFTER,
        layout=verifier.layout,
        widths=fine_widths(settings.k_max) if not alone and not oracle and _narrow_pays(verifier, tokens) else (),
        lookup=pair.lookup if speculative else None,
        # By measured costs no run repeats another's draft lengths anyway; by given ones a row's hang on itself alone.
        together=speculative and not settings.costs and settings.lookahead.timed,  # pyright: ignore[reportAttributeAccessIssue]
    )
    programs = compile_plan(plan, advance_sequential if settings.method == "token_cascade" else advance)
    context = min(language.model.context_length for language in holders(pair, settings.method))
    if settings.context is not None and settings.context > context:
        raise UserError(
            f"CONTEXT must be at most {context}, which is what the models can hold, not {settings.context}"
            + goes_further(pair, settings.method)
        )
    return Engine(
        settings,
        pair,
        programs,
        verifier.params,
        drafter.params if drafter else {},
        context,
        {},
        {},
        [],
        time.perf_counter(),
        None if hosts.several() or settings.costs else memory,  # several hosts must believe the same
    )


def _narrow_pays(model: LoadedModel, tokens: int | None) -> bool:
    """Whether a pass over three tokens takes so much less than one over nine that it is worth another copy to compile.

    It does on CPUs, but in float32 nearly all of the step is from one token to two. Accelerators wait for the weights.
    Two more copies of SmolLM2 took two cores 13 s, and the passes of two thousand tokens in bfloat16 less by that.
    """
    if tokens is not None and tokens < _MANY:
        return False
    float32 = all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(model.params))
    return jax.default_backend() == "cpu" and not float32


def holders(pair: LoadedPair, method: str) -> list[LoadedModel]:
    """Returns the models that must hold every token of a row.

    Where the verifier sees every token, it alone: behind its own context a drafter drafts nothing.
    """
    if method in READS or pair.drafter is None:
        return [pair.verifier]
    return [pair.drafter] if method == "drafter_only" else [pair.verifier, pair.drafter]


def goes_further(pair: LoadedPair, method: str) -> str:
    """Returns advice for a text that is too long for a method alone, as it asks the drafter for every token."""
    drafter = pair.drafter
    if method in READS or drafter is None or drafter.model.context_length >= pair.verifier.model.context_length:
        return ""
    return (
        f"; METHOD='{method}' needs the drafter for every token, and {drafter.name} holds "
        f"{drafter.model.context_length}: METHOD='speculative' goes on without it"
    )


def sharing(engine: Engine, others: Iterable[Engine]) -> Engine:
    """Returns `engine` with the programs of one of `others` that traces the same, so that they are compiled once.

    Where a controller begins is no part of a program: every `fixed(k)` is the same one.
    """

    def traced(engine: Engine) -> Plan:
        plan = engine.programs.plan
        return plan._replace(lookahead=plan.lookahead._replace(init=None, name=""))  # pyright: ignore[reportArgumentType]

    for other in others:
        plan = engine.programs.plan
        if engine.pair is other.pair and not plan.lookahead.timed and traced(engine) == traced(other):
            programs = engine.programs._replace(start=other.programs.start, run=other.programs.run)
            return engine._replace(programs=programs, compiled=other.compiled)
    return engine


def part(engine: Engine, method: str) -> Engine:
    """Returns the engine of the same pair in another method, built once; alpha is none of a rule there."""
    if method not in engine.parts:
        alone = build(engine.pair, dataclasses.replace(engine.settings, method=method, rule=lossless, more_rules=()))
        engine.parts[method] = alone._replace(born=engine.born)
    return engine.parts[method]


def slots_for(engine: Engine, limits: Iterable[int]) -> int:
    """Returns the length of the buffers of a run whose rows grow to `limits`."""
    return engine.settings.context or min(bucket(max(limits), _CONTEXT), engine.context)


def bucket(length: int, least: int) -> int:
    """Returns the smallest of `least`, twice that, four times that, … that is no less than `length`."""
    while least < length:
        least *= 2
    return least


def prompt_width(engine: Engine, length: int, slots: int) -> int:
    """Returns the width that a prompt is padded to: a decoder takes any length in chunks, an encoder reads it whole."""
    return slots if engine.programs.plan.verifier.start is None else min(bucket(length, _ENCODED), slots)


def compile_for(engine: Engine, shapes: Shapes, length: int) -> Compiled:
    """Returns the programs of these shapes for prompts of `length` tokens, compiled where they are not there yet.

    What is known of costs is still to be added: see `costs.programs_for`.
    """
    width, known = prompt_width(engine, length, shapes.slots), engine.compiled.get(shapes)
    if known is not None and width in known.starts:
        return known
    began = time.perf_counter()
    with _uncollected():
        if known is None:
            known = engine.compiled[shapes] = _compiled(engine, shapes, width, length)
        else:
            known.starts[width] = _start(engine, shapes, width, known.costs)
    known.seconds += time.perf_counter() - began
    return known


def _compiled(engine: Engine, shapes: Shapes, width: int, length: int) -> Compiled:
    settings, programs = engine.settings, engine.programs
    plan, weights = programs.plan, (engine.verifier_params, engine.drafter_params)
    given = settings.costs if plan.k_max == settings.k_max else None  # a baseline drafts nothing
    costs = given_costs(plan.k_max, *(given or (0.0, ())))  # pyright: ignore[reportArgumentType]
    guide = initial(engine, shapes.batch, costs)
    vacant = programs.vacant.lower(guide, shapes.slots).compile()
    # On a mesh the loop takes the state where it lies once it is there.
    state = _placed(jax.eval_shape(partial(programs.vacant, slots=shapes.slots), guide), vacant, plan.layout)
    stop = jax.ShapeDtypeStruct((shapes.batch,), jnp.bool_)
    number, truth = (jax.ShapeDtypeStruct((), dtype) for dtype in (jnp.int32, jnp.bool_))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        loop = pool.submit(lambda: programs.run.lower(*weights, state, stop, number, number, truth).compile())
        start = pool.submit(_start, engine, shapes, width, costs)
        one, request = initial(engine, 1, costs), example(engine, width)
        row = jax.eval_shape(partial(programs.start, slots=shapes.slots), *weights, request, one)
        row = _placed(row, start.result(), plan.layout) if plan.layout else row
        insert = programs.insert.lower(state, row, number).compile()
        if plan.layout is None:  # of several hosts, all must run the same in the same order
            _warm(engine, start.result(), width, length, one)
        return Compiled(shapes, {width: start.result()}, vacant, insert, loop.result(), costs, 0.0)


def _warm(engine: Engine, start: Any, width: int, length: int, guide: Any) -> None:
    """Prefills a prompt of `length` tokens for nobody, while the loop is still compiled.

    XLA on CPUs prepares each product at its first call, which takes a second in all; the first request would wait.
    """
    prompt = row(engine, width, (0,) * length, length + 1)
    jax.block_until_ready(start(engine.verifier_params, engine.drafter_params, prompt, guide))


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Keeps Python from looking for garbage: tracing makes a great many objects, and of compiling it took a sixth."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _start(engine: Engine, shapes: Shapes, width: int, costs: Costs) -> Any:
    weights = engine.verifier_params, engine.drafter_params
    request = example(engine, width)
    return engine.programs.start.lower(*weights, request, initial(engine, 1, costs), shapes.slots).compile()


def _placed(like: Any, program: Any, layout: Any) -> Any:
    """The shapes of what a program returns, and on a mesh where."""
    if layout is None:
        return like
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), like, program.output_shardings
    )


def vacant(engine: Engine, compiled: Compiled) -> State:
    """Returns a state in which nobody sits."""
    return compiled.vacant(initial(engine, compiled.shapes.batch, compiled.costs))


def admit(engine: Engine, compiled: Compiled, state: State, request: Request, slot: int) -> State:
    """Prefills one row and puts it into the place of row `slot`; the state is consumed."""
    start = compiled.starts[request.tokens.shape[1]]
    row = start(engine.verifier_params, engine.drafter_params, request, _begun(engine, compiled.costs))
    return compiled.insert(state, row, np.int32(slot))


def proceed(
    engine: Engine,
    compiled: Compiled,
    state: State,
    stop: np.ndarray,
    rounds: int,
    forced: int = FREE,
    eager: bool = False,
) -> State:
    """Runs at most `rounds` rounds, if `eager` until a row ends; the state is consumed."""
    weights = engine.verifier_params, engine.drafter_params
    return compiled.run(*weights, state, stop, np.int32(rounds), np.int32(forced), np.bool_(eager))


def _begun(engine: Engine, costs: Costs) -> Any:
    """The lookahead's state with which a row begins."""
    if not engine.learnt:
        return initial(engine, 1, costs)
    plan = engine.programs.plan
    state = plan.lookahead.recost(jax.device_put(engine.learnt[0]), costs)
    return state if plan.layout is None else hosts.everywhere(state, plan.layout.mesh)


def initial(engine: Engine, batch: int, costs: Costs) -> Any:
    """The lookahead's first state; on a mesh every device holds it."""
    plan = engine.programs.plan
    state = plan.lookahead.init(batch, costs)
    return state if plan.layout is None else hosts.everywhere(state, plan.layout.mesh)


def row(
    engine: Engine,
    width: int,
    ids: tuple[int, ...],
    limit: int,
    *,
    seed: int = 0,
    name: tuple[int, int] = (0, 0),
    rule: int = 0,
    alpha: float = 0.0,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    strict: int = 0,
    ignore_eos: bool = False,
) -> Request:
    """Returns a request of one row. name: two numbers that tell its random stream from others of the same seed."""
    tokens = np.zeros((1, width), np.int32)
    tokens[0, : len(ids)] = ids

    def one(value, dtype) -> Any:
        return jnp.asarray([value], dtype)

    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), np.uint32(name[0])), np.uint32(name[1]))
    real, whole = jnp.float32, jnp.int32
    request = Request(
        tokens=jnp.asarray(tokens),
        length=one(len(ids), whole),
        limit=one(limit, whole),
        key=key[None],
        sampling=Sampling(one(temperature, real), one(top_k, whole), one(top_p, real), one(min_p, real)),
        rule=one(rule, whole),
        alpha=one(alpha, real),
        strict=one(len(ids) + strict if strict else 0, whole),
        ignore_eos=one(ignore_eos, jnp.bool_),
    )
    layout = engine.programs.plan.layout
    return request if layout is None else hosts.everywhere(request, layout.mesh)


def example(engine: Engine, width: int) -> Request:
    """A request of the shapes that `row` gives."""
    return row(engine, width, (0,), 1)
