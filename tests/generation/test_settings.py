"""Settings: what is taken, what is refused and with which sentence."""

import math

import jax.numpy as jnp
import jaxtyping
import pytest

from cascades import lookahead, rules
from cascades.errors import UserError
from cascades.generation import Settings
from cascades.rules import Target


@pytest.fixture(autouse=True)
def no_type_checks(monkeypatch):
    """A user's values meet the settings' own checks, not those of the tests."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def refused(**knobs):
    with pytest.raises(UserError) as caught:
        Settings(**knobs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("rule", [getattr(rules, name) for name in rules.__all__], ids=rules.__all__)
def test_alpha_of_every_rule(rule):
    low, high = rules.ALPHA_RANGE[rule]
    for alpha in (low, high):
        assert Settings(rule=rule, alpha=alpha).alpha == alpha
    if math.isfinite(low):
        assert f"must be a number from {low:g}" in refused(rule=rule, alpha=low - 0.01)
    if math.isfinite(high):
        assert f"to {high:g}, not" in refused(rule=rule, alpha=high + 0.01)
    assert "ALPHA" in refused(rule=rule, alpha=math.nan)


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p"])
def test_not_a_number(name):
    assert f"{name.upper()} must be a number" in refused(**{name: math.nan})


def test_a_string_is_one_stop_string():
    assert Settings(stop="\n\n").stop == ("\n\n",)
    assert Settings(stop=["a", "b"]).stop == ("a", "b")
    assert "STOP" in refused(stop="") and "STOP" in refused(stop=None)


def test_a_lookahead_with_or_without_parentheses():
    assert isinstance(Settings(lookahead=lookahead.fixed).lookahead, lookahead.DraftLength)
    given = lookahead.fixed(3)
    assert Settings(lookahead=given).lookahead is given


def test_a_rule_of_ones_own():
    def mine(pair, alpha):
        return Target(jnp.where(alpha[..., None] > 0, pair.q, pair.p), jnp.zeros_like(alpha))

    assert Settings(rule=mine, alpha=-1e9).plain_rule is mine


def test_rules_that_a_request_may_name():
    def mine(pair, alpha):
        return Target(pair.q, jnp.zeros_like(alpha))

    settings = Settings(rule=rules.opt, alpha=2.0, more_rules=[rules.chow, mine])
    assert settings.rule_names == ("opt", "chow", "mine") and settings.more_rules == (rules.chow, mine)
    assert [settings.chosen(name, 0.5) for name in (None, "opt", "chow", "mine")] == [0, 0, 1, 2]
    with pytest.raises(UserError, match="^prompt 3: ALPHA for chow must be a number from 0 to 1, not 2.0$"):
        settings.chosen("chow", 2.0, "prompt 3")
    for name in ("token_v4", "lossless", 1, ["chow"]):
        with pytest.raises(UserError, match=r"^the rule must be one that is compiled in \(opt, chow, mine\), not "):
            settings.chosen(name, 0.5)
    with pytest.raises(UserError, match="ALPHA for opt"):
        settings.chosen(None, "much")


def test_rules_that_cannot_be():
    assert "RULE and MORE_RULES must have names of their own, and chow stands twice" in refused(
        rule=rules.chow, alpha=0.1, more_rules=[rules.opt, rules.chow]
    )
    assert "MORE_RULES must be a list of rules" in refused(more_rules=rules.opt)
    assert "MORE_RULES must be a list of rules" in refused(more_rules="opt")
    assert "each of MORE_RULES must be a deferral rule such as @token_v3" in refused(more_rules=["opt"])
    assert "each of MORE_RULES must return Target(pi, defer)" in refused(more_rules=[lambda pair, alpha: pair.p])
    assert "not opt" in refused(method="token_cascade", rule=rules.chow, more_rules=[rules.opt])


def test_functions_that_are_no_rules():
    assert "must be a function (pair, alpha) -> Target" in refused(rule=lambda pair: pair.p)
    assert "must be a function (pair, alpha) -> Target" in refused(rule=lambda pair, alpha: pair.nothing)
    assert "must return Target(pi, defer)" in refused(rule=lambda pair, alpha: pair.p)
    assert "must return Target(pi, defer)" in refused(rule=lambda pair, alpha: Target(pair.p, pair.p))
    assert "must return Target(pi, defer)" in refused(rule=lambda pair, alpha: Target(pair.p > 0, alpha))


def test_costs():
    given = (0.1, (1.0, 1.1, 1.2))
    assert Settings(k_max=2, costs=given).costs == given
    assert Settings(k_max=2, costs=(*given, 0.2)).costs == (*given, 0.2)
    assert "catching up must be a number" in refused(k_max=2, costs=(*given, -1.0))
    for costs in (
        (0.1,),
        (*given, 0.1, 0.1),
        (*given, "a"),
        (0.1, (1.0, 1.1)),
        (math.nan, (1.0,) * 3),
        (0.1, (1.0, 0.0, 1.0)),
        "ab",
        3,
    ):
        assert "COSTS must be (c, (v_0, …, v_2))" in refused(k_max=2, costs=costs)
