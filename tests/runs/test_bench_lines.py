"""Lines of a bench from seconds and answers that were made up."""

import pytest

from cascades.runs.bench_lines import ALONE, Answer, generations, lines_of
from cascades.runs.parts import Part


def part(kind, name, **facts):
    return Part(kind, name, lambda: 0.0, facts)


def test_bytes_are_told_against_the_memory_and_rounds_beside_their_parts():
    timed = [
        (part("memory", "memory, read", bytes=8_000_000_000), [1.0, 2.0, 4.0]),
        (part("pass", "verifier, 3 tokens", model="verifier", width=3, bytes=1_000_000_000), [0.5, 0.25, 0.75]),
        (part("pass", "drafter, 1 token", model="drafter", width=1, bytes=1_000_000), [0.1, 0.1, 0.1]),
        (part("choice", "a draft is drawn"), [0.01, 0.02, 0.03]),
        (part("choice", "chow judges 2", rule="chow", drafts=2), [0.04, 0.04, 0.04]),
        (part("choice", "chow judges 8", rule="chow", drafts=8), [9.0, 9.0, 9.0]),
        (part("round", "k = 2", drafts=2, width=3, rule="chow"), [1.0, 1.0, 1.0]),
    ]
    memory, verifier, *_, whole = lines_of(*zip(*timed, strict=True))
    assert (memory["gb_per_s"], memory["of_memory"]) == (8.0, 1.0)
    assert (verifier["seconds"], verifier["low"], verifier["high"]) == (0.5, 0.25, 0.75)
    assert (verifier["gb_per_s"], verifier["of_memory"]) == (4.0, 0.5)
    assert whole["parts"] == pytest.approx(0.5 + 0.04 + 2 * (0.1 + 0.02))


def test_speed_is_told_repeat_by_repeat_prefill_apart():
    def answers(*seconds, ids=(1, 2, 3, 4), **others):
        return [[Answer(ids, 9.0, each, **others)] for each in seconds]

    told = {
        ALONE: answers(1.0, 2.0, 4.0, calls=4),
        "ours": answers(0.5, 1.0, 1.0, ids=(1, 2, 7, 8), calls=2),
        "theirs": answers(0.75, 1.5, 3.0, early=1),
    }
    alone, ours, theirs = generations(told, lambda ids: "".join(map(str, ids)))
    assert alone["speed"] == 1 and alone["same_text"] == 1 and alone["tokens_per_s"] == 2.0
    assert (ours["speed"], ours["speed_low"], ours["speed_high"]) == (2.0, 2.0, 4.0)
    assert ours["tokens_per_call"] == 2 and ours["same_text"] == 0 and ours["agrees_to"] == [2]
    assert ours["texts"] == ["1278"] and ours["prefill_s"] == 9.0 and ours["decode_s"] == 1.0
    assert theirs["speed"] == 1 and theirs["tokens_per_call"] is None  # three tokens in three quarters of the time
