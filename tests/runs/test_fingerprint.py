"""Digests tell configurations apart, and the same one again."""

import functools
import subprocess
import sys

import pytest

from cascades import lookahead, rules
from cascades.runs import fingerprint

CONTROLLERS = (
    lookahead.fixed(3),
    lookahead.fixed(4),
    lookahead.heuristic(),
    lookahead.drafter_confidence(0.4),
    lookahead.drafter_confidence(0.5),
    lookahead.bild_fallback(0.4),
    lookahead.verifier_guided(),
    lookahead.verifier_guided(patience=9),
)


def code(value):
    return fingerprint.digest(fingerprint.of_code(value))


def test_controllers_are_told_apart():
    assert len({code(controller) for controller in CONTROLLERS}) == len(CONTROLLERS)
    assert code(lookahead.fixed(3)) == code(CONTROLLERS[0])


def test_another_process_finds_the_same():
    script = (
        "from cascades import lookahead, rules; from cascades.runs import fingerprint as f;"
        "print(f.digest(f.of_code(lookahead.verifier_guided())), f.of_rule(rules.token_v3))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=600)
    assert done.stdout.split() == [code(lookahead.verifier_guided()), fingerprint.of_rule(rules.token_v3)]


def test_rules_are_told_apart_by_what_they_do():
    found = {name: fingerprint.of_rule(getattr(rules, name)) for name in rules.__all__}
    assert len(set(found.values())) == len(found)

    @functools.wraps(rules.chow)
    def wrapped(pair, alpha):
        return rules.chow(pair, alpha)

    assert fingerprint.of_rule(wrapped) == found["chow"]
    assert fingerprint.of_rule(functools.partial(rules.lossy, beta=0.5)) != found["lossy"]


@pytest.mark.parametrize("value", [None, True, 3, 0.5, "text"])
def test_plain_values_stay(value):
    assert fingerprint.of_code(value) is value


def test_an_address_is_no_part_of_a_digest():
    assert code([object()]) == code([object()])
