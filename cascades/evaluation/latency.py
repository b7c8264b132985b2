"""What an answer would take on another machine: its counts, times what each pass costs there."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from cascades.errors import UserError
from cascades.lookahead import given_costs


class PassCosts(NamedTuple):
    """What passes cost on some machine, relative to a verifier pass over one token.

    draft: a drafter step, c. verify: `[k_max + 1]`, a verifier pass over k drafts, v_k.
    """

    draft: float
    verify: tuple[float, ...]


def pass_costs(name: str, given: Any) -> PassCosts:
    """Returns (c, (v_0, v_1, …)) in units of v_0.

    Raises:
      UserError: it is no such thing.
    """
    try:
        draft, verify = given
        verify = tuple(float(each) for each in verify)
        if not verify:
            raise ValueError("no verifier pass")
        given_costs(len(verify) - 1, float(draft), verify)
    except (TypeError, ValueError) as error:
        raise UserError(
            "each of LATENCY is a name and (c, (v_0, v_1, …)), a drafter step and verifier passes over so many "
            f"drafts, but {name!r} has {given!r}: {error}"
        ) from None
    return PassCosts(float(draft) / verify[0], tuple(each / verify[0] for each in verify))


def expected(stats: Mapping[str, Any], costs: PassCosts) -> float:
    """Returns what the passes of one answer take, in verifier passes over one token; prefill is left out.

    A round of k drafts is k drafter steps, which are counted apart, and a pass over k drafts and one token more. A
    cascade that goes token by token drafts nothing: where the verifier is asked, it reads what the drafter has written
    since, and its passes are taken to be as long as they are on average, but no longer than `costs` knows.

    Args:
      stats: see `generation.results.stats`. Its rounds drafted no more than `costs` knows.
    """
    calls, positions = stats["verifier_calls"], [*stats["drafted_by_position"], 0]
    if calls and not any(positions):
        read = stats["tokens_out"] / calls - 1  # beside the one that is asked for
        pass_of_it = float(np.interp(read, range(len(costs.verify)), costs.verify))
        return calls * pass_of_it + stats["drafter_steps"] * costs.draft
    longer = [calls, *positions[:-1]]
    rounds = [max(a - b, 0) for a, b in zip(longer, positions, strict=True)]  # by how many drafts they had
    passes = sum(count * cost for count, cost in zip(rounds, costs.verify, strict=False))
    return passes + stats["drafter_steps"] * costs.draft
