"""Requests from prompts, and their decoding: tokens as they are decided, results as requests finish."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from cascades.decoding import Origin
from cascades.errors import UserError
from cascades.generation import engine as engines
from cascades.generation.costs import programs_for
from cascades.generation.engine import Engine, Shapes
from cascades.generation.results import Result
from cascades.generation.slots import Finished, Query, Slots, Token, limit_of, named


def queries(
    engine: Engine,
    prompts: Sequence[str],
    *,
    raw: bool = False,
    control_tokens: bool | None = None,
    label: str | None = None,
    rule: Any = None,
    alpha: Any = None,
    strict: Any = None,
) -> list[Query]:
    """Turns prompts into requests: the chat template around each where the verifier has one, unless `raw`.

    `control_tokens`: see `Tokenizer.prompt`. In errors a prompt goes by its number, or by `label`. `rule`, `alpha`,
    `strict`: see `query`.

    Raises:
      UserError: no prompt, an empty one, one that leaves no room in the context, or a rule or alpha that cannot be.
    """
    tokenizer = engine.pair.verifier.tokenizer
    if not prompts:
        raise UserError("at least one prompt is needed, and there is none")
    requests = []
    for number, prompt in enumerate(prompts, 1):
        where = label or f"prompt {number} of {len(prompts)}"
        if not prompt.strip():
            raise UserError(f"{where} is empty: give it some text")
        ids = tokenizer.prompt(prompt, raw=raw, control_tokens=control_tokens)
        requests.append(query(engine, prompt, ids, where, rule=rule, alpha=alpha, strict=strict))
    return requests


def query(
    engine: Engine,
    prompt: str,
    ids: Sequence[int],
    label: str = "the prompt",
    *,
    rule: Any = None,
    alpha: Any = None,
    strict: Any = None,
) -> Query:
    """Returns a request with the engine's settings; `label` names it in errors.

    `rule` by its name, `alpha` and `strict`, where given, are its own.

    An encoder–decoder reads `ids`, and begins its answer behind them.
    """
    settings, start = engine.settings, engine.programs.plan.verifier.start
    alpha = settings.alpha if alpha is None else alpha
    settings.chosen(rule, alpha, label)
    strict = settings.bound(settings.strict if strict is None else strict, label)
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
    return Query(
        prompt,
        tuple(ids),
        float(alpha),
        settings.temperature,
        settings.max_new_tokens,
        settings.top_k,
        settings.top_p,
        settings.min_p,
        settings.seed,
        settings.stop,
        settings.ignore_eos,
        strict,
        rule,
    )


def prepare(engine: Engine, requests: Sequence[Query]) -> Shapes:
    """Compiles for `requests`; at any threshold or temperature `generate(…, shapes=…)` then compiles nothing.

    Not for a sequence cascade, whose two models have programs of their own.

    Returns:
      Rows and slots to decode any of these requests with.
    """
    shapes = _shapes(engine, requests)
    for request in requests:
        programs_for(engine, shapes, request.ids)
    return shapes


def generate(
    engine: Engine,
    requests: Sequence[Query],
    *,
    rounds: int = 4,
    shapes: Shapes | None = None,
    together: bool = False,
) -> Iterator[Token | Finished]:
    """Decodes requests, `settings.batch_size` side by side, all with one compiled loop.

    Args:
      engine: what decodes. requests: in any order; a request's text depends on neither order nor neighbours.
      rounds: rounds between two looks at the text. Few make a smooth stream, many cost the host less.
      shapes: from `prepare`, so that its programs serve these requests.
      together: admit only when all slots are free, so that requests run in fixed batches, in order. Else a request is
        admitted as soon as another has ended.

    Yields:
      Tokens as they are decided, and each request's result as soon as it has ended.
    """
    for request in requests:  # before anything is compiled
        engine.settings.chosen(request.rule, request.alpha)
    if engine.settings.method == "sequence_cascade":
        yield from _sequence_cascade(engine, requests, rounds, together)
        return
    shapes = shapes or _shapes(engine, requests)
    longest = max(limit_of(engine, request) for request in requests)
    if longest > shapes.slots:
        raise ValueError(f"requests of up to {longest} tokens do not fit {shapes.slots} slots: prepare for the longest")
    slots, waiting = Slots(engine, shapes, requests[0]), deque(enumerate(named(requests)))
    while waiting or slots.busy:
        if waiting and slots.free and not (together and slots.busy):
            slots.admit([waiting.popleft() for _ in range(min(slots.free, len(waiting)))])
        yield from slots.step(rounds, eager=bool(waiting) and not together)


def complete(
    engine: Engine,
    requests: Sequence[Query],
    *,
    rounds: int = 64,
    shapes: Shapes | None = None,
    together: bool = False,
) -> list[Result]:
    """Returns the results of `generate`, in the order of `requests`."""
    events = generate(engine, requests, rounds=rounds, shapes=shapes, together=together)
    ended = (event for event in events if isinstance(event, Finished))
    return [result for _, result in sorted(ended, key=lambda event: event.index)]


def _sequence_cascade(
    engine: Engine, requests: Sequence[Query], rounds: int, together: bool
) -> Iterator[Token | Finished]:
    """The drafter answers every request; the verifier those where it was unsure on average, or could not go on."""
    # A model that decodes alone has no rule to choose.
    requests, deferred = named([request._replace(rule=None) for request in requests]), []
    for event in generate(engines.part(engine, "drafter_only"), requests, rounds=rounds, together=together):
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
    again = [requests[event.index] for event in deferred]
    for event in generate(engines.part(engine, "verifier_only"), again, rounds=rounds, together=together):
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
            figures["start_s"] = spent["start_s"]
            figures["tokens_per_s"] = round(figures["tokens_out"] / figures["wall_s"], 4)
            yield Finished(draft.index, event.result._replace(stats=figures))


def _shapes(engine: Engine, requests: Sequence[Query]) -> Shapes:
    slots = engines.slots_for(engine, [limit_of(engine, request) for request in requests])
    return Shapes(min(engine.settings.batch_size, len(requests)), slots)
