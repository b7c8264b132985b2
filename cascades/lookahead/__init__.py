"""How many tokens to draft next: a `DraftLength`, a NamedTuple of pure functions with one state per row.

The law of the output is kept because a length is chosen from PAST rounds, or by stopping on what the drafter says
at a drafted prefix; never from a drafted token's own fate.
"""

from cascades.lookahead.contract import Costs as Costs
from cascades.lookahead.contract import Drafted as Drafted
from cascades.lookahead.contract import DraftLength as DraftLength
from cascades.lookahead.contract import Verdict as Verdict
from cascades.lookahead.contract import given_costs as given_costs
from cascades.lookahead.guided import verifier_guided
from cascades.lookahead.simple import bild_fallback, drafter_confidence, fixed, heuristic

__all__ = [
    "fixed",
    "heuristic",
    "drafter_confidence",
    "bild_fallback",
    "verifier_guided",
]  # by which gin files name them
