"""The host's side of a generation: batches, tokens as they are decided, stop strings, results as requests finish."""

import dataclasses
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cascades import hosts
from cascades.decoding import Finish, Info, Origin, Request, State
from cascades.distributions import Sampling
from cascades.errors import UserError
from cascades.generation import engine as engines
from cascades.generation.engine import Compiled, Engine, Shapes
from cascades.generation.results import Result, finish_name, origin_name, row, stats
from cascades.generation.text import Text
from cascades.rules import lossless


class Query(NamedTuple):
    """One request. prompt: its text. ids: its tokens. alpha: the rule's threshold."""

    prompt: str
    ids: tuple[int, ...]
    alpha: float
    temperature: float
    max_new_tokens: int


class Token(NamedTuple):
    """A piece of text was decided. index: of the query. origin: a number of `Origin`."""

    index: int
    text: str
    origin: int


class Finished(NamedTuple):
    """A request ended. index: of the query."""

    index: int
    result: Result


def queries(
    engine: Engine,
    prompts: Sequence[str],
    *,
    raw: bool = False,
    control_tokens: bool | None = None,
    label: str | None = None,
) -> list[Query]:
    """Turns prompts into requests: the chat template around each where the verifier has one, unless `raw`.

    `control_tokens`: see `Tokenizer.prompt`. In errors a prompt goes by its number, or by `label`.

    Raises:
      UserError: no prompt, an empty one, or one that leaves no room in the context.
    """
    tokenizer = engine.pair.verifier.tokenizer
    if not prompts:
        raise UserError("at least one prompt is needed, and there is none")
    found = []
    for number, prompt in enumerate(prompts, 1):
        where = label or f"prompt {number} of {len(prompts)}"
        if not prompt.strip():
            raise UserError(f"{where} is empty: give it some text")
        ids = tokenizer.prompt(prompt, raw=raw, control_tokens=control_tokens)
        found.append(query(engine, prompt, ids, where))
    return found


def query(engine: Engine, prompt: str, ids: Sequence[int], label: str = "the prompt") -> Query:
    """Returns a request with the engine's settings; `label` names it in errors.

    An encoder–decoder reads `ids`, and begins its answer behind them.
    """
    settings, start = engine.settings, engine.programs.plan.verifier.start
    context = min(engine.context, settings.context or engine.context)
    if not ids:
        raise UserError(f"{label} has no tokens: give it some text")
    ids = ids if start is None else [*ids, start]
    if len(ids) >= context:
        raise UserError(
            f"{label} has {len(ids)} tokens, which leaves no room for an answer in a context of {context}: shorten it"
            + (", or raise CONTEXT" if context < engine.context else ", or choose models with a longer context")
            + engines.goes_further(engine.pair, settings.method)
        )
    vocabulary = engine.programs.plan.vocab_size
    if max(ids) >= vocabulary:
        raise UserError(f"{label} holds token {max(ids)}, but the two models share only the first {vocabulary} tokens")
    return Query(prompt, tuple(ids), settings.alpha, settings.temperature, settings.max_new_tokens)


def prepare(engine: Engine, requests: Sequence[Query]) -> Shapes:
    """Compiles for `requests`; at any threshold or temperature `generate(…, shapes=…)` then compiles nothing.

    Not for a sequence cascade, whose two models have programs of their own.

    Returns:
      Rows and slots to decode any of these requests with.
    """
    batch = min(engine.settings.batch_size, len(requests))
    slots = engines.slots_for(engine, [_limit(engine, request) for request in requests])
    for request in requests:
        shapes = engines.shapes_for(batch, [len(request.ids)], slots)
        engines.compile_for(engine, shapes, batch_of(engine, shapes, [request]))
    return Shapes(batch, slots, slots)


def generate(
    engine: Engine, requests: Sequence[Query], *, rounds: int = 4, shapes: Shapes | None = None
) -> Iterator[Token | Finished]:
    """Decodes requests in batches of `settings.batch_size`, all with one compiled loop.

    Args:
      engine: what decodes. requests: in any order; a request's text depends on neither order nor batch.
      rounds: rounds between two looks at the text. Few make a smooth stream, many cost the host less.
      shapes: from `prepare`, so that its programs serve these requests.

    Yields:
      Tokens as they are decided, and each request's result as soon as it has ended.
    """
    if engine.settings.method == "sequence_cascade":
        yield from _sequence_cascade(engine, requests, rounds)
        return
    batch = shapes.batch if shapes else min(engine.settings.batch_size, len(requests))
    limits = [_limit(engine, request) for request in requests]
    slots = shapes.slots if shapes else engines.slots_for(engine, limits)
    if max(limits) > slots:
        raise ValueError(f"requests of up to {max(limits)} tokens do not fit {slots} slots: prepare for the longest")
    names = _names(requests)
    for first in range(0, len(requests), batch):
        chosen = list(range(first, min(first + batch, len(requests))))
        group = [requests[i] for i in chosen]
        fit = engines.shapes_for(batch, [len(request.ids) for request in group], slots)
        request = batch_of(engine, fit, group, names[first:])
        yield from _decode(engine, engines.compile_for(engine, fit, request), request, chosen, requests, rounds)


def complete(
    engine: Engine, requests: Sequence[Query], *, rounds: int = 64, shapes: Shapes | None = None
) -> list[Result]:
    """Returns the results of `generate`, in the order of `requests`."""
    ended = (event for event in generate(engine, requests, rounds=rounds, shapes=shapes) if isinstance(event, Finished))
    return [result for _, result in sorted(ended, key=lambda event: event.index)]


def _decode(
    engine: Engine, compiled: Compiled, request: Request, chosen: list[int], requests: Sequence[Query], rounds: int
) -> Iterator[Token | Finished]:
    settings = engine.settings
    tokenizer = engine.pair.verifier.tokenizer
    texts = [Text(tokenizer, settings.stop) for _ in chosen]
    seen = [len(requests[i].ids) for i in chosen]
    shown: list[list[tuple[int, int]]] = [[] for _ in chosen]
    first_token = [0.0] * len(chosen)
    open_rows = set(range(len(chosen)))
    stop = np.zeros((compiled.shapes.batch,), bool)
    began = time.perf_counter()
    state = jax.block_until_ready(engines.begin(engine, compiled, request))
    prefill_s = time.perf_counter() - began
    step = 1  # the first token is shown as soon as it is there
    while open_rows:
        state = engines.proceed(engine, compiled, state, stop, step)
        step = rounds
        look = _Look.at(state)
        now = time.perf_counter() - began
        for at in sorted(open_rows):
            index, text = chosen[at], texts[at]
            for token, origin in look.new(at, seen[at]):
                first_token[at] = first_token[at] or now
                shown[at].append((token, origin))
                yield from (Token(index, piece, who) for piece, who in text.push(token, origin))
                if text.stopped:
                    break
            seen[at] = int(look.length[at])
            finish = Finish.STOP if text.stopped else Finish(int(look.finish[at]))
            if finish == Finish.RUNNING:
                continue
            stop[at] = True
            open_rows.discard(at)
            if not text.stopped:
                last = shown[at][-1][1] if shown[at] else 0
                yield from (Token(index, piece, who) for piece, who in text.flush(last))
            yield Finished(
                index,
                Result(
                    prompt=requests[index].prompt,
                    text=text.released,
                    token_ids=[token for token, _ in shown[at]],
                    origins=[origin_name(origin) for _, origin in shown[at]],
                    finish_reason=finish_name(finish),
                    error=_failure(settings.method, len(shown[at])) if finish == Finish.ERROR else None,
                    stats=stats(
                        _told(settings.method, row(look.info, at)),
                        len(shown[at]),
                        wall_s=now,
                        compile_s=compiled.seconds,
                        prefill_s=prefill_s,
                        ttft_s=first_token[at],
                    ),
                ),
            )


def _sequence_cascade(engine: Engine, requests: Sequence[Query], rounds: int) -> Iterator[Token | Finished]:
    """The drafter answers every request; the verifier those where it was unsure on average, or could not go on."""
    plain = dataclasses.replace(engine.settings, method="drafter_only", rule=lossless)  # alpha is none of a rule here
    alone = engines.build(engine.pair, plain)
    deferred = []
    for event in generate(alone, requests, rounds=rounds):
        if isinstance(event, Finished):
            result = event.result
            score = -result.stats["log_p"] / max(len(result.token_ids), 1)
            if result.error or score > requests[event.index].alpha:
                deferred.append(event)
            else:
                yield from (Token(event.index, text, Origin.DRAFTER) for text in (result.text,) if text)
                figures = {**result.stats, "decided": 1, "deferral_rate": 0.0}
                yield Finished(event.index, result._replace(stats=figures))
    if not deferred:
        return
    verifier = engines.build(engine.pair, dataclasses.replace(plain, method="verifier_only"))
    for event in generate(verifier, [requests[event.index] for event in deferred], rounds=rounds):
        draft = deferred[event.index]
        if isinstance(event, Token):
            yield event._replace(index=draft.index)
        else:
            spent = draft.result.stats
            figures = {**event.result.stats, "decided": 1, "deferred": 1.0, "deferral_rate": 1.0}
            figures["drafter_steps"] = spent["drafter_steps"]
            figures["drafter_nan"] = int(draft.result.error is not None)
            for name in ("wall_s", "compile_s"):
                figures[name] = round(figures[name] + spent[name], 4)
            figures["ttft_s"] = round(figures["ttft_s"] + spent["wall_s"], 4)
            figures["tokens_per_s"] = round(figures["tokens_out"] / figures["wall_s"], 4)
            yield Finished(draft.index, event.result._replace(stats=figures))


def _failure(method: str, tokens: int) -> str:
    who = "drafter" if method == "drafter_only" else "verifier"
    return (
        f"the {who} says NaN or infinity where token {tokens + 1} of the answer would be, so that the answer ends "
        "before it: its weights should be finite numbers; where they are, set DTYPE='float32'"
    )


def _told(method: str, info: Info) -> Info:
    """A drafter that decodes alone does so in the verifier's place; its passes are counted under its own name."""
    if method != "drafter_only":
        return info
    return info._replace(verifier_calls=np.int32(0), drafter_steps=info.verifier_calls)


class _Look(NamedTuple):
    """The part of a state that the host reads."""

    tokens: np.ndarray
    origins: np.ndarray
    length: np.ndarray
    finish: np.ndarray
    info: Info

    @classmethod
    def at(cls, state: State) -> "_Look":
        return cls(*hosts.whole((state.tokens, state.origins, state.length, state.finish, state.info)))

    def new(self, at: int, start: int) -> list[tuple[int, int]]:
        part = slice(start, int(self.length[at]))
        return list(zip(self.tokens[at, part].tolist(), self.origins[at, part].tolist(), strict=True))


def _limit(engine: Engine, request: Query) -> int:
    context = min(engine.context, engine.settings.context or engine.context)
    return min(len(request.ids) + request.max_new_tokens, context)


def _names(requests: Sequence[Query]) -> list[tuple[int, int]]:
    """A request's random stream hangs on its own tokens, not on its place; the n-th of equal prompts gets the n-th."""
    copies: Counter[tuple[int, ...]] = Counter()
    numbers = []
    for request in requests:
        digest = zlib.crc32(np.asarray(request.ids, np.int32).tobytes())
        numbers.append((digest, copies[request.ids]))
        copies[request.ids] += 1
    return numbers


def batch_of(
    engine: Engine, shapes: Shapes, requests: Sequence[Query], numbers: Sequence[tuple[int, int]] = ()
) -> Request:
    """Pads requests to the shapes. Rows without a request hold one token and have ended before they begin."""
    settings, rows = engine.settings, shapes.batch
    tokens = np.zeros((rows, shapes.prompt), np.int32)
    length, limit = np.ones((rows,), np.int32), np.ones((rows,), np.int32)
    alpha, temperature = np.zeros((rows,), np.float32), np.zeros((rows,), np.float32)
    names = np.zeros((rows, 2), np.uint32)
    for at, request in enumerate(requests):
        tokens[at, : len(request.ids)] = request.ids
        length[at], limit[at] = len(request.ids), _limit(engine, request)
        alpha[at], temperature[at] = request.alpha, request.temperature
        names[at] = numbers[at] if numbers else 0

    def full(value, dtype):
        return jnp.full((rows,), value, dtype)

    seed = jax.random.key(settings.seed)
    names_on_device = jnp.asarray(names)
    keys = jax.vmap(lambda name: jax.random.fold_in(jax.random.fold_in(seed, name[0]), name[1]))(names_on_device)
    request = Request(
        tokens=jnp.asarray(tokens),
        length=jnp.asarray(length),
        limit=jnp.asarray(limit),
        key=keys,
        sampling=Sampling(
            jnp.asarray(temperature),
            full(settings.top_k, jnp.int32),
            full(settings.top_p, jnp.float32),
            full(settings.min_p, jnp.float32),
        ),
        alpha=jnp.asarray(alpha),
    )
    layout = engine.programs.plan.layout
    return request if layout is None else hosts.everywhere(request, layout.mesh)
