"""From what a bench timed to its lines: medians and spread, against the memory's speed and the verifier alone."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from cascades.runs.parts import Part

ALONE, DRAWN = "verifier alone", "a draft is drawn"


class Answer(NamedTuple):
    """What one prompt got.

    ids: tokens of the answer. prefill_s: until the prompt was read. decode_s: the seconds behind it. early: tokens that
    came with the prompt's own pass, which decode_s does not hold. calls: verifier passes, where they are known.
    """

    ids: tuple[int, ...]
    prefill_s: float
    decode_s: float
    early: int = 0
    calls: int | None = None


def lines_of(timed: Sequence[Part], seconds: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """Returns a line for each part: medians over the repeats, the least and the largest.

    What reads a known number of bytes is told against the memory's speed, both by their fastest repeats, as a machine
    that others use too is slower at times; a round beside the sum of its parts.
    """
    lines = []
    for each, taken in zip(timed, seconds, strict=True):
        figures = {"seconds": statistics.median(taken), "low": min(taken), "high": max(taken)}
        lines.append({"kind": each.kind, "name": each.name, **each.facts, **figures})
    memory = next(line for line in lines if line["kind"] == "memory")  # the first of them is read alone
    for line in lines:
        if "bytes" in line:
            line["gb_per_s"] = line["bytes"] / line["low"] / 1e9
            line["of_memory"] = line["gb_per_s"] / (memory["bytes"] / memory["low"] / 1e9)
        if line["kind"] == "round":
            line["parts"] = _sum_of_parts(line, lines)
    return lines


def _sum_of_parts(line: dict[str, Any], lines: Sequence[dict[str, Any]]) -> float:
    """Seconds of what a round is made of: steps of the drafter, a pass of the verifier, the rule's judgement."""

    def seconds(kind: str, **facts: Any) -> float:
        found = (each for each in lines if each["kind"] == kind and facts.items() <= each.items())
        return next((each["seconds"] for each in found), 0.0)

    step = seconds("pass", model="drafter") + seconds("choice", name=DRAWN)
    judged = seconds("choice", rule=line["rule"], drafts=line["drafts"])
    return line["drafts"] * step + seconds("pass", model="verifier", width=line["width"]) + judged


def generations(answers: dict[str, list[list[Answer]]], decode: Callable[[Sequence[int]], str]) -> list[dict[str, Any]]:
    """Returns a line for each that answered; its speed is told against `ALONE`, repeat by repeat."""
    alone = [_rate(each) for each in answers[ALONE]]
    lines = []
    for name, told in answers.items():
        rates = [_rate(each) for each in told]
        speeds = sorted(rate / base for rate, base in zip(rates, alone, strict=True))
        pairs = list(zip(told[0], answers[ALONE][0], strict=True))
        calls = [answer.calls for answer in told[0] if answer.calls]
        tokens = sum(len(answer.ids) for answer in told[0])
        lines.append(
            {
                "kind": "generation",
                "name": name,
                "prompts": len(told[0]),
                "tokens": tokens,
                "prefill_s": statistics.median(sum(answer.prefill_s for answer in each) for each in told),
                "decode_s": statistics.median(sum(answer.decode_s for answer in each) for each in told),
                "tokens_per_s": statistics.median(rates),
                "speed": statistics.median(speeds),
                "speed_low": speeds[0],
                "speed_high": speeds[-1],
                "tokens_per_call": tokens / sum(calls) if calls else None,
                "same_text": sum(a.ids == b.ids for a, b in pairs),
                "agrees_to": [_common(a.ids, b.ids) for a, b in pairs],
                "texts": [decode(answer.ids) for answer in told[0]],
            }
        )
    return lines


def _rate(answers: Sequence[Answer]) -> float:
    """Tokens a second, prefill apart."""
    return sum(len(each.ids) - each.early for each in answers) / max(sum(each.decode_s for each in answers), 1e-9)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first tokens two answers share."""
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
