"""What is reported of a request."""

from typing import NamedTuple

import numpy as np

from cascades.decoding import Finish, Info, Origin


class Result(NamedTuple):
    """One finished request.

    prompt: as it was given. text: the answer, without special tokens, cut at a stop string. token_ids, origins: of the
    answer, one name of `Origin` a token, lower case. finish_reason: "eos", "length", "stop" or "error". stats: see
    `stats`; empty where nothing was decoded. error: of a request that has no answer, or no whole one, why.
    """

    prompt: str
    text: str
    token_ids: list[int]
    origins: list[str]
    finish_reason: str
    stats: dict
    error: str | None = None


def origin_name(origin: int) -> str:
    return Origin(origin).name.lower()


def finish_name(finish: int) -> str:
    return Finish(finish).name.lower()


def row(info: Info, index: int) -> Info:
    """Returns one row's counts on the host."""
    return Info(*(np.asarray(field)[index] for field in info))


def stats(
    info: Info,
    tokens_out: int,
    *,
    wall_s: float,
    compile_s: float,
    prefill_s: float,
    ttft_s: float,
    start_s: float = 0.0,
    costs: dict | None = None,
) -> dict:
    """Returns the figures of one request (or, of summed counts, of several), None where a rate has no basis.

    Rounds that ran behind a stop string, before the host saw it, are counted; their tokens are not.

    block_efficiency: tokens per verifier call, 1 for the verifier alone. acceptance_rate: accepted / drafted.
    rejection_rate, deferral_rate: per decided draft position, that is, accepted ones and the first rejected; deferred
    is the rule's share for the verifier there. looked_up, looked_up_accepted: of drafted and accepted, what a look-up
    found. wall_s: from when the request, or the batch that it was admitted with, was taken up, to its last token,
    without compile_s. prefill_s: the part of it before its prompt was read. ttft_s: to the first token. start_s: when
    wall_s began to count, in seconds after the engine was built. drafter_nan: 1 where the drafter said NaN and the
    request went on without it. costs: see `costs.told`; None without a drafter.
    """
    drafted, decided, calls = int(info.drafted), int(info.decided), int(info.verifier_calls)
    return {
        "tokens_out": tokens_out,
        "rounds": int(info.rounds),
        "verifier_calls": calls,
        "drafter_steps": int(info.drafter_steps),
        "drafted": drafted,
        "accepted": int(info.accepted),
        "rejected": int(info.rejected),
        "looked_up": int(info.found),
        "looked_up_accepted": int(info.found_kept),
        "accepted_by_rule": int(info.by_rule),
        "deferred": round(float(info.deferred), 4),
        "decided": decided,
        "block_efficiency": _ratio(tokens_out, calls),
        "acceptance_rate": _ratio(int(info.accepted), drafted),
        "rejection_rate": _ratio(int(info.rejected), decided),
        "deferral_rate": _ratio(float(info.deferred), decided),
        "accepted_histogram": [int(x) for x in info.histogram],
        "acceptance_by_position": [
            _ratio(int(a), int(d)) for a, d in zip(info.accepted_at, info.drafted_at, strict=True)
        ],
        "drafted_by_position": [int(x) for x in info.drafted_at],
        "drafter_nan": int(info.drafter_nan),
        "log_p": round(float(info.log_p), 4),
        "wall_s": round(wall_s, 4),
        "compile_s": round(compile_s, 4),
        "prefill_s": round(prefill_s, 4),
        "ttft_s": round(ttft_s, 4),
        "start_s": round(start_s, 4),
        "tokens_per_s": _ratio(tokens_out, wall_s),
        "costs": costs,
    }


def total(infos: list[Info]) -> Info:
    """Returns summed counts."""
    return Info(*(np.sum(np.stack(field), axis=0) for field in zip(*infos, strict=True)))


def _ratio(a: int | float, b: int | float) -> float | None:
    return round(a / b, 4) if b else None
