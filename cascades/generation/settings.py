"""How text is decoded, checked before anything is loaded or compiled."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cascades import checks, rules
from cascades.decoding import sees_drafter_only
from cascades.errors import UserError
from cascades.lookahead import DraftLength, given_costs, verifier_guided
from cascades.rules import Pair, Target

__all__ = ["METHODS", "Settings"]

METHODS = ("speculative", "verifier_only", "drafter_only", "token_cascade", "oracle_cascade", "sequence_cascade")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The knobs of a run.

    method: one of `METHODS`. rule: a deferral rule. more_rules: others, which a request may name. alpha: the
      threshold of `rule`; of a sequence cascade the mean negative log-probability, in nats a token, above which the
      verifier answers instead. k_max: longest draft. lookahead: how many tokens to draft next; a function that makes
      one is called.
    strict: first tokens of an answer that follow the verifier's own law, whatever the rule is.
    temperature: 0 is greedy. top_k: 0 is off. top_p: 1 is off. min_p: 0 is off.
    coupling, bonus: see `speculation.judge`. seed: of all random numbers.
    max_new_tokens: per request. context: most tokens of prompt and answer; None is what the prompts need.
    batch_size: requests that are decoded together. stop: strings that end an answer, or one. ignore_eos: for
      benchmarks.
    costs: for the lookahead, see `given_costs`: (c, (v_0, …, v_k_max)), and if need be what the drafter takes to catch
      up. They stay as they are, so that a run repeats; None measures or recalls them, and corrects them by the clock.

    Raises:
      UserError: a knob with a value that it cannot have.
    """

    method: str = "speculative"
    rule: Callable = rules.token_v3
    more_rules: Sequence[Callable] = ()
    alpha: float = 0.1
    strict: int = 0
    k_max: int = 8
    lookahead: DraftLength | Callable[[], DraftLength] = verifier_guided
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    coupling: str = "maximal"
    bonus: str = "verifier"
    seed: int = 0
    max_new_tokens: int = 128
    context: int | None = None
    batch_size: int = 1
    stop: Sequence[str] = ()
    ignore_eos: bool = False
    costs: tuple[float, tuple[float, ...]] | tuple[float, tuple[float, ...], float] | None = None

    def __post_init__(self):
        checks.one_of("METHOD", self.method, METHODS)
        checks.one_of("COUPLING", self.coupling, ("maximal", "gumbel"))
        checks.one_of("BONUS", self.bonus, ("verifier", "target"))
        _rule("RULE", self.rule)
        if not isinstance(self.more_rules, list | tuple):
            raise UserError(f"MORE_RULES must be a list of rules, as in [@lossless, @chow], not {self.more_rules!r}")
        object.__setattr__(self, "more_rules", tuple(self.more_rules))
        for each in self.more_rules:
            _rule("each of MORE_RULES", each)
        twice = next((name for name in self.rule_names if self.rule_names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"the rules of RULE and MORE_RULES must have names of their own, and {twice} stands twice")
        object.__setattr__(self, "lookahead", _controller(self.lookahead))
        self.chosen(None, self.alpha)
        self.bound(self.strict)
        checks.whole("K_MAX", self.k_max, 1, 64)
        checks.number("TEMPERATURE", self.temperature, 0.0, 100.0)
        checks.whole("TOP_K", self.top_k, 0, 1 << 30)
        checks.number("TOP_P", self.top_p, 0.0, 1.0)
        if self.top_p == 0:
            raise UserError("TOP_P must be greater than 0 (1 turns it off), not 0")
        checks.number("MIN_P", self.min_p, 0.0, 1.0)
        checks.whole("SEED", self.seed, 0, (1 << 32) - 1)
        checks.whole("MAX_NEW_TOKENS", self.max_new_tokens, 1, 1 << 24)
        checks.whole("BATCH_SIZE", self.batch_size, 1, 4096)
        if self.context is not None:
            checks.whole("CONTEXT", self.context, 2, 1 << 24)
        checks.switch("IGNORE_EOS", self.ignore_eos)
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, list | tuple) or not all(isinstance(text, str) and text for text in stop):
            raise UserError(f"STOP must be a list of strings that are not empty, as in ['\\n\\n'], not {self.stop!r}")
        object.__setattr__(self, "stop", tuple(stop))
        for rule, name in zip((self.rule, *self.more_rules), self.rule_names, strict=True):
            if self.method == "token_cascade" and not sees_drafter_only(rule):
                raise UserError(
                    f"a token cascade needs a rule that looks at the drafter only (chow or chow_log), not {name}: "
                    "choose --gin.RULE=@chow, or METHOD='oracle_cascade'"
                )
        if self.costs is not None:
            try:
                draft, verify, *catch_up = self.costs
                given_costs(self.k_max, draft, tuple(verify), *catch_up)
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"COSTS must be (c, (v_0, …, v_{self.k_max})), a drafter step and verifier passes, or have a third "
                    f"figure for a drafter that catches up, not {self.costs!r}: {error}"
                ) from None

    @property
    def plain_rule(self) -> Callable:
        """The rule itself, which gin wraps."""
        return rules.plain(self.rule)

    @property
    def rule_names(self) -> tuple[str, ...]:
        """Names of `rule` and `more_rules`, in that order."""
        return tuple(getattr(rule, "__name__", "rule") for rule in (self.rule, *self.more_rules))

    def chosen(self, rule: Any, alpha: Any, label: str = "") -> int:
        """Returns the place, among `rule` and `more_rules`, of the rule that a request names: None is the first.

        Args:
          rule, alpha: of the request, as they came. label: names it in errors.

        Raises:
          UserError: there is no such rule, or alpha lies outside its range.
        """
        where, names = f"{label}: " if label else "", self.rule_names
        if rule is not None and (not isinstance(rule, str) or rule not in names):
            raise UserError(
                f"{where}the rule must be one that is compiled in ({', '.join(names)}), not {rule!r}: "
                "MORE_RULES takes more of them"
            )
        place = 0 if rule is None else names.index(rule)
        low, high = rules.ALPHA_RANGE.get(rules.plain((self.rule, *self.more_rules)[place]), (-math.inf, math.inf))
        name = names[place]
        if self.method == "sequence_cascade":
            low, high, name = 0.0, math.inf, "a sequence cascade"
        checks.number(f"{where}ALPHA for {name}", alpha, low, high, infinite=True)
        return place

    def bound(self, strict: Any, label: str = "") -> int:
        """Returns how many tokens of a request are strict, as it says.

        Raises:
          UserError: that is no such number, or the method lets the drafter decide them.
        """
        where = f"{label}: " if label else ""
        checks.whole(f"{where}STRICT", strict, 0, 1 << 24)
        if strict and self.method in ("drafter_only", "sequence_cascade"):
            raise UserError(
                f"{where}STRICT={strict} leaves the first tokens of an answer to the verifier, and "
                f"METHOD='{self.method}' does not ask it for single tokens: leave STRICT 0, or choose another METHOD"
            )
        return strict

    @property
    def needs_drafter(self) -> bool:
        return self.method != "verifier_only"


def _names() -> str:
    return ", ".join(rules.__all__)


def _rule(knob: str, rule) -> None:
    """Tries the rule on shapes alone, so that a function that is none is found before a program is built with it."""
    name = getattr(rule, "__name__", repr(rule))
    probs: Any = jax.ShapeDtypeStruct((2, 5), jnp.float32)
    row = jax.ShapeDtypeStruct((2,), jnp.float32)
    if not callable(rule) or isinstance(rule, type):
        raise UserError(f"{knob} must be a deferral rule such as @token_v3 (one of {_names()}), not {name}")
    try:
        target = jax.eval_shape(rule, Pair(probs, probs, probs, probs), row)
    except Exception as error:  # whatever a function does that is no rule, or one of the user's own
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{knob} must be a function (pair, alpha) -> Target (one of {_names()}, or your own), but {name} fails: "
            f"{reason}"
        ) from error
    shapes = [(leaf.shape, leaf.dtype) for leaf in target] if isinstance(target, Target) else None
    if shapes != [((2, 5), jnp.float32), ((2,), jnp.float32)]:
        raise UserError(
            f"{knob} must return Target(pi, defer), float32, of the shapes [b, v] and [b], but {name} returns {target}"
        )


def _controller(lookahead) -> DraftLength:
    """Returns a draft-length controller; `@fixed` does as well as `@fixed()`."""
    controller, name = lookahead, getattr(lookahead, "__name__", repr(lookahead))
    wanted = f"LOOKAHEAD must be a draft-length controller such as @verifier_guided(), not {name}"
    if callable(controller):
        try:
            controller = controller()
        except TypeError as error:
            raise UserError(wanted) from error
    if not isinstance(controller, DraftLength):
        raise UserError(wanted)
    return controller
