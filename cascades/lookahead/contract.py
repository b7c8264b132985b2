"""What the loop and a controller of the draft length say to each other."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from cascades.errors import UserError
from cascades.typing import Array, Bool, Float, Int

UNLIMITED = 1 << 20  # the loop cuts every proposal to k_max and to the room that is left


class Drafted(NamedTuple):
    """What the drafter says at one position, before a token is drawn there.

    index: int32 scalar, 0 for the round's first draft. top: `[b]`, max of its raw distribution. drafting: `[b]`, rows
    that are drafting at this index. peers: see `DraftLength`.
    """

    index: Int[Array, ""]
    top: Float[Array, " b"]
    drafting: Bool[Array, " b"]
    peers: Bool[Array, " b"] | None = None


class Verdict(NamedTuple):
    """What the verifier said of a round.

    steps: int32 `[b]`, drafter steps that the round took. drafted: drafts that joined the block. accepted: those kept.
    expected: `[b, k]`, 1 - D_TV(pi, q) per position, of a greedy row that of temperature 1. decided: `[b, k]`,
    positions up to and including the first rejection. top: `[b, k]`, the drafter's max raw probability there. matched:
    int32 `[b, k]`, where a look-up drafted, how many tokens before that draft had occurred before; else 0. counted:
    `[b]`, rows of which the bare outcomes tell more than what was expected, which is not their own chance: greedy ones.
    peers: see `DraftLength`.
    """

    steps: Int[Array, " b"]
    drafted: Int[Array, " b"]
    accepted: Int[Array, " b"]
    expected: Float[Array, "b k"]
    decided: Bool[Array, "b k"]
    top: Float[Array, "b k"]
    matched: Int[Array, "b k"]
    counted: Bool[Array, " b"]
    peers: Bool[Array, " b"] | None = None


class Costs(NamedTuple):
    """What a round takes, in units of a verifier pass over one token; measured or given, never guessed.

    draft: c, one drafter step. verify: `[k_max + 1]`, v_k, a verifier pass over k drafts and the token before them.
    catch_up: one drafter pass that reads tokens it had missed, and scores what follows.
    """

    draft: Float[Array, ""]
    verify: Float[Array, " m"]
    catch_up: Float[Array, ""]


def shared(peers: Bool[Array, " b"] | None, values: Array) -> Array:
    """Returns the mean of `[b, …]` over the peers, for each row; the values themselves where there are none."""
    if peers is None:
        return values
    weights = peers.reshape(-1, *(1,) * (values.ndim - 1)).astype(values.dtype)
    mean = jnp.sum(weights * values, axis=0, keepdims=True) / jnp.maximum(jnp.sum(weights), 1.0)
    return jnp.broadcast_to(mean, values.shape)


def most(peers: Bool[Array, " b"] | None, values: Int[Array, " b"]) -> Int[Array, " b"]:
    """Returns the largest of the peers' numbers, from 0, for each row; a row's own where there are no peers."""
    if peers is None:
        return values
    return jnp.broadcast_to(jnp.max(jnp.where(peers, values, 0)), values.shape)


def whatever_is_drawn(state: Any, drafted: Drafted, own: Float[Array, " b"]) -> tuple[Any, Bool[Array, " b"]]:
    """The `drawn` of a controller to which the token itself does not matter."""
    del drafted
    return state, jnp.ones(own.shape, bool)


def whatever_it_costs(state: Any, costs: Costs) -> Any:
    """The `recost` of a controller that reads no costs."""
    del costs
    return state


class DraftLength(NamedTuple):
    """A controller of the draft length. Its state is any tree of arrays.

    init: `(batch, costs) -> state`, every leaf with a leading axis b.
    propose: `(state, matched, peers) -> (state, k, found)`, what to draft this round, `[b]` each: at most `found`
      tokens that a look-up found at once, `matched` `[b]` being how many tokens matched, 0 where it found nothing; of
      a row that drafts none of these at most k tokens of the drafter. peers: `[b]`, rows that run and decide as one,
      since each waits for the longest draft of all; None where each decides for itself, as if it were alone.
    step: `(state, Drafted) -> (state, keep, more)`: whether the token joins the block, and whether to draft another.
      It is asked before the token is drawn. To keep a token or not by which one it is would change the law of what is
      emitted there: a drafter that says two tokens evenly, and of which one alone is kept, would never say the other.
    drawn: `(state, Drafted, own) -> (state, more)`: whether to draft another behind the token that was drawn; `own` is
      its raw probability, `[b]`. Another is drafted where both want one.
    update: `(state, Verdict) -> state`, called for rows that took part in a round.
    recost: `(state, Costs) -> state`, once the costs are known better than before. It is called between two rounds,
      outside of any program, and computes what `init` does, so that nothing is compiled for it.
    timed: whether `costs` are read, so that they are worth measuring.
    learns: whether what a row has learnt is true of other rows too. Those that come later then begin with its state, of
      several rows with the mean of their numbers.
    name: for people; two controllers that differ should differ in it.
    """

    init: Callable[[int, Costs], Any]
    propose: Callable[[Any, Int[Array, " b"], Bool[Array, " b"] | None], tuple[Any, Int[Array, " b"], Int[Array, " b"]]]
    step: Callable[[Any, Drafted], tuple[Any, Bool[Array, " b"], Bool[Array, " b"]]]
    update: Callable[[Any, Verdict], Any]
    drawn: Callable[[Any, Drafted, Float[Array, " b"]], tuple[Any, Bool[Array, " b"]]] = whatever_is_drawn
    recost: Callable[[Any, Costs], Any] = whatever_it_costs
    timed: bool = False
    learns: bool = False
    name: str = "custom"


@dataclasses.dataclass(frozen=True)
class Bound:
    """A function whose first argument is given, as of `functools.partial`; but two of the same are equal."""

    function: Callable[..., Any]
    given: Any

    def __call__(self, *others: Any) -> Any:
        return self.function(self.given, *others)


def check_whole(name: str, value: Any, low: int) -> None:
    """Raises a UserError unless an argument of a controller is a whole number from `low` to `UNLIMITED`."""
    if type(value) is not int or not low <= value <= UNLIMITED:
        raise UserError(f"{name} must be a whole number from {low} to {UNLIMITED}, not {value!r}")


def check_number(name: str, value: Any, low: float, high: float) -> None:
    """Raises a UserError unless an argument of a controller is a number from `low` to `high`."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:  # nor is NaN
        raise UserError(f"{name} must be a number from {low:g} to {high:g}, not {value!r}")


def given_costs(k_max: int, draft: float, verify: tuple[float, ...] = (), catch_up: float | None = None) -> Costs:
    """Returns `Costs` from figures in any unit of their own.

    Args:
      draft: c. verify: v_0 … v_k_max; empty is 1 for each. catch_up: None is c.

    Raises:
      UserError: a figure is not a positive number, or `verify` is not of length k_max + 1.
    """
    passes = tuple(verify) or (1.0,) * (k_max + 1)
    if len(passes) != k_max + 1 or not all(math.isfinite(x) and x > 0 for x in passes):
        raise UserError(f"verify costs must be {k_max + 1} positive numbers, one for each k from 0, not {passes}")
    if not (math.isfinite(draft) and draft >= 0):
        raise UserError(f"the cost of a drafter step must be a number from 0, not {draft}")
    missed = draft if catch_up is None else catch_up
    if not (math.isfinite(missed) and missed >= 0):
        raise UserError(f"the cost of a drafter's catching up must be a number from 0, not {missed}")
    return Costs(*(jnp.asarray(np.divide(each, passes[0]), jnp.float32) for each in (draft, passes, missed)))
