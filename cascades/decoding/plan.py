"""What is static in a program: models, rules, widths."""

from typing import NamedTuple

from cascades.decoding.lookup import LookUp
from cascades.decoding.state import Origin
from cascades.lookahead import DraftLength
from cascades.rules import Rule
from cascades.sharding import Layout
from cascades.speculation import Bonus, Coupling
from cascades.typing import Model

CHOICE = "choice"
"""The `jax.named_scope` of what belongs to rules and sampling, by which its share of a compiled step is known."""


class Plan(NamedTuple):
    """What is static in a program.

    verifier: scores. drafter: drafts. lookup: drafts what a row repeats, with a drafter or without; with neither the
    verifier decodes alone. rules: at least one; a request names its
    own by the place here, the first by default. lookahead: of this run. k_max: longest draft. vocab_size: logits behind
    it are padding and cut off. eos: ids that end a row. coupling, bonus: see `speculation`.
    alone: the origin of tokens where nothing drafts. layout: where the verifier lives; None is one device.
    together: whether rows decide as one how long drafts are, as they wait for the longest; then a row's depend on who
    sits beside it.
    widths: tokens of the verifier passes that are compiled, see `passes`. Each of them is one more copy of it in the
    program.
    """

    verifier: Model
    drafter: Model | None
    rules: tuple[Rule, ...]
    lookahead: DraftLength
    k_max: int
    vocab_size: int
    eos: tuple[int, ...] = ()
    coupling: Coupling = "maximal"
    bonus: Bonus = "verifier"
    alone: Origin = Origin.VERIFIER
    layout: Layout | None = None
    lookup: LookUp | None = None
    together: bool = False
    widths: tuple[int, ...] = ()

    @property
    def longest(self) -> int:
        """Longest draft; 0 where nothing drafts."""
        return self.k_max if self.drafter or self.lookup else 0

    def catch_up(self, rows: int) -> int:
        """Tokens of the pass by which a drafter reads what it has missed, mostly fewer than `k_max` + 1 of them.

        A drafter that was not asked for a while has missed many. Of one row, 16 cost a model of its own no more than 8,
        as it waits for its weights; of several rows they do on CPUs, and of one that reads features, as it has few.
        """
        waits = self.drafter is not None and self.drafter.feature_width is None and rows == 1
        return 16 if waits else 8

    @property
    def passes(self) -> tuple[int, ...]:
        """Tokens of the verifier passes, ascending, from 1 to `longest` + 1: `widths`, or those two where it is empty.

        A round takes the narrowest that holds its longest draft. On accelerators all of them take about as long.
        """
        if not self.longest:
            return (1,)
        widths = self.widths or (1, self.k_max + 1)
        assert widths[0] == 1 and widths[-1] == self.k_max + 1 and list(widths) == sorted(set(widths)), widths
        return widths


def fine_widths(k_max: int) -> tuple[int, ...]:
    """Returns 1, 3, 5, 9, 17, … and k_max + 1: for machines on which wide passes take longer than narrow ones."""
    widths = [2**i + 1 for i in range(1, 6) if 2**i < k_max]
    return (1, *widths, k_max + 1) if k_max else (1,)
