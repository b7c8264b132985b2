"""What a sweep compares: rules at thresholds, baselines, controllers and temperatures, checked before anything runs."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from cascades import checks
from cascades import rules as deferral
from cascades.errors import UserError
from cascades.evaluation.summary import VERIFIER
from cascades.generation import Query, Settings
from cascades.lookahead import DraftLength
from cascades.runs import fingerprint

METHODS = ("speculative", "token_cascade", "oracle_cascade")
BASELINES = ("drafter_only", "token_cascade", "oracle_cascade", "sequence_cascade", "min_p")
"""What may stand in BASELINES: the drafter alone; cascades that decide by one token, or by a whole answer; and min-p
sampling from the verifier alone, the control of token_v3, which keeps the same tokens."""
_RULE_OF = {"token_cascade": deferral.chow, "oracle_cascade": deferral.diff}


class Point(NamedTuple):
    """One line of a sweep: a rule at a threshold with a draft-length controller at a temperature, or a baseline.

    rule: a baseline goes by its own name, `VERIFIER` is the verifier alone. rule_id, lookahead_id: digests of what the
    rule does and of the controller's code; empty where there is none. alpha: None where there is no threshold.
    """

    rule: str
    rule_id: str
    lookahead: str
    lookahead_id: str
    alpha: float | None
    temperature: float
    settings: Settings

    @property
    def program(self) -> tuple:
        """What is compiled for it. Thresholds, temperatures and truncation are traced, so that they share a program."""
        if self.settings.method == "verifier_only":
            return (VERIFIER,)
        return self[:4]

    @property
    def label(self) -> str:
        return self.rule if self.alpha is None else f"{self.rule} {self.alpha:g}"


def points(
    rules: Any,
    controllers: Sequence[Any],
    settings: Settings,
    baselines: Any = (),
    temperatures: Any = None,
) -> list[Point]:
    """Returns the verifier alone, the baselines, and every rule at every threshold with every controller.

    All of it at each temperature; `settings`' own if None.

    Raises:
      UserError: `rules` or `baselines` is not what it should be, a threshold lies outside its rule's range, or a rule
        does not suit the method.
    """
    if settings.method not in METHODS:
        raise UserError(f"METHOD of a sweep must be one of {', '.join(METHODS)}, not {settings.method!r}")
    if callable(rules) or not isinstance(rules, list | tuple) or not (rules or baselines):
        raise UserError(f"RULES must be a list as in [(@token_v3, (0.0, 0.1)), @lossless], not {rules!r}")
    settings = dataclasses.replace(settings, more_rules=())  # one a program
    alone = dataclasses.replace(settings, method="verifier_only", rule=deferral.lossless, alpha=0.0)
    swept: dict[Any, Point] = {}
    for temperature in _temperatures(temperatures, settings):
        at = {"temperature": temperature}
        base = Point(VERIFIER, "", "", "", None, temperature, dataclasses.replace(alone, **at))
        each = [base, *_baselines(baselines, dataclasses.replace(alone, **at))]
        each += _of_rules(rules, controllers, dataclasses.replace(settings, **at))
        for point in each:
            identity = VERIFIER if point.rule == VERIFIER else point[:1] if not point.rule_id else (point.rule_id,)
            swept.setdefault((identity, point.lookahead_id, point.alpha, temperature), point)
    return list(swept.values())


def requested(point: Point, query: Query) -> Query:
    """Returns a request as a point decodes it."""
    own = point.settings
    return query._replace(alpha=own.alpha, temperature=own.temperature, min_p=own.min_p, strict=own.strict, rule=None)


def described(point: Point) -> dict[str, Any]:
    """Returns the fields of a line that name its point."""
    names = ("rule", "rule_id", "lookahead", "lookahead_id", "alpha", "temperature")
    return {name: getattr(point, name) for name in names}


def controllers_of(lookahead: Any) -> Sequence[Any]:
    """Returns a list of draft-length controllers of one or several.

    Raises:
      UserError: the list is empty.
    """
    if isinstance(lookahead, list | tuple) and not isinstance(lookahead, DraftLength):
        if not lookahead:
            raise UserError("LOOKAHEAD must be a draft-length controller, or a list of some, not an empty list")
        return lookahead
    return [lookahead]


def _temperatures(temperatures: Any, settings: Settings) -> list[float]:
    if temperatures is None:
        return [float(settings.temperature)]
    if not isinstance(temperatures, list | tuple) or not temperatures:
        raise UserError(f"TEMPERATURES must be a list of numbers, as in (0, 0.5, 1), or None, not {temperatures!r}")
    for each in temperatures:
        checks.number("each of TEMPERATURES", each, 0.0, 100.0)
    return [float(each) for each in dict.fromkeys(temperatures)]


def _baselines(baselines: Any, alone: Settings) -> list[Point]:
    """alone: the verifier's own settings."""
    if isinstance(baselines, str) or not isinstance(baselines, list | tuple):
        raise UserError(f"BASELINES must be a list as in ['drafter_only', ('min_p', (0.1,))], not {baselines!r}")
    found = []
    for item in baselines:
        name, thresholds = item if _is_pair(item) else (item, (None,))
        if not isinstance(name, str) or name not in BASELINES:
            raise UserError(f"each of BASELINES is one of {', '.join(BASELINES)}, with thresholds, not {item!r}")
        if (name == "drafter_only") != (thresholds == (None,)):
            need = "has no thresholds" if name == "drafter_only" else f"needs thresholds, as in ('{name}', (0.1, 0.3))"
            raise UserError(f"{name} of BASELINES {need}")
        for alpha in thresholds:
            found.append(Point(name, "", "", "", _number(alpha), alone.temperature, _baseline(name, alpha, alone)))
    return found


def _baseline(name: str, alpha: Any, alone: Settings) -> Settings:
    if name == "drafter_only":
        return dataclasses.replace(alone, method=name, strict=0)
    if name == "min_p":
        checks.number("the threshold of min_p", alpha, 0.0, 1.0)
        return dataclasses.replace(alone, min_p=float(alpha))
    strict = 0 if name == "sequence_cascade" else alone.strict
    rule = _RULE_OF.get(name, deferral.lossless)
    return dataclasses.replace(alone, method=name, rule=rule, alpha=_number(alpha), strict=strict)


def _of_rules(rules: Sequence[Any], controllers: Sequence[Any], settings: Settings) -> list[Point]:
    found = []
    for item in rules:
        rule, thresholds = (item, (None,)) if callable(item) else item if _is_pair(item) else (None, ())
        if not callable(rule):
            raise UserError(f"each of RULES is a rule and its thresholds, as in (@token_v3, (0.0, 0.1)), not {item!r}")
        plain = dataclasses.replace(settings, rule=rule, alpha=0.0).plain_rule if thresholds == (None,) else rule
        name = getattr(rule, "__name__", "rule")
        if thresholds == (None,) and plain is not deferral.lossless:
            raise UserError(f"{name} of RULES needs thresholds, as in (@{name}, (0.1, 0.3)): only lossless has none")
        identity = fingerprint.of_rule(rule)
        for alpha in thresholds:
            number = 0.0 if alpha is None else _number(alpha)
            for controller in controllers:
                own = dataclasses.replace(settings, rule=rule, alpha=number, lookahead=controller)
                assert isinstance(own.lookahead, DraftLength)
                steps = fingerprint.digest(fingerprint.of_code(own.lookahead))
                threshold = None if alpha is None else number
                found.append(Point(name, identity, own.lookahead.name, steps, threshold, own.temperature, own))
    return found


def _number(alpha: Any) -> Any:
    """A whole number as a float; what is no number is left to the checks of `Settings`."""
    return float(alpha) if isinstance(alpha, int) and not isinstance(alpha, bool) else alpha


def _is_pair(item: Any) -> bool:
    if not isinstance(item, list | tuple) or len(item) != 2:
        return False
    return isinstance(item[1], list | tuple) and len(item[1]) > 0
