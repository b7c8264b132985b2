"""What drafts are worth, by what their passes cost: chains, trees, and the acceptance that a speed needs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from cascades.planning.trees import tree_tokens

ACCEPTANCES = (0.5, 0.6, 0.7, 0.8, 0.9)
TARGETS = (2.0, 3.0)


class Tree(NamedTuple):
    """The best tree. nodes: its drafts. depth: of its longest path. speedup: over the verifier alone."""

    nodes: int
    depth: int
    speedup: float


def by_length(verify: Mapping[int, float], k_max: int) -> list[float]:
    """Returns what the verifier's pass over k drafts and one token costs, for k from 0: the narrowest that holds them.

    Args:
      verify: of each width that is compiled, which are at least 1 and `k_max` + 1.
    """
    return [verify[min(width for width in verify if width > k)] for k in range(k_max + 1)]


def best_k(acceptance: float, draft: float, verify: Sequence[float]) -> tuple[int, float]:
    """Returns argmax over k of (1 + a + … + a^k) / (k c + v_k), and its value.

    Tokens that a round of k drafts earns over what it costs (Leviathan et al., arXiv 2211.17192, section 3.4, with a
    cost of its own for each width of the verifier's pass).

    Args:
      acceptance: a, of every draft. draft: c, a drafter step. verify: v_k for k from 0, in the same unit.
    """
    speeds = [sum(acceptance**i for i in range(k + 1)) / (k * draft + cost) for k, cost in enumerate(verify)]
    return max(range(len(speeds)), key=speeds.__getitem__), max(speeds)


def best_tree(acceptance: float, draft: float, verify: Sequence[float]) -> Tree:
    """Returns the tree that earns most for what it costs, under the law of `tree_tokens`.

    A tree of n drafts costs a drafter pass for each level, and the verifier's over n + 1 tokens. That a pass over all
    nodes of a level costs what one over a single token does is assumed too.

    Args:
      See `best_k`.
    """
    best = Tree(0, 0, 1 / verify[0])
    for depth in range(1, len(verify)):
        for nodes, tokens in enumerate(tree_tokens(acceptance, depth, len(verify) - 1)):
            if nodes >= depth and (speed := tokens / (depth * draft + verify[nodes])) > best.speedup:
                best = Tree(nodes, depth, speed)
    return best


def least_acceptance(speed: Callable[[float], float], target: float) -> float | None:
    """Returns the least acceptance, to a thousandth, at which `speed` reaches a target; None if it never does.

    Args:
      speed: of an acceptance, with which it only grows.
    """
    if speed(1.0) < target:
        return None
    below, above = -1, 1000
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (below, middle) if speed(middle / 1000) >= target else (middle, above)
    return above / 1000


def worth(draft: float, verify: Mapping[int, float], k_max: int, *, trees: bool = True) -> dict[str, Any]:
    """Returns what a drafter wins, in a form that JSON can hold.

    Args:
      draft: seconds of its step; 0 of a look-up. verify: of the verifier's passes, by width. trees: whether it can
        draft them, which a look-up cannot.

    Returns:
      c: a drafter step over a verifier's pass of one token. chain, tree: at each of `ACCEPTANCES`, `best_k` and
      `best_tree`. least_chain, least_tree: the least acceptance of each of `TARGETS`.
    """
    c, v = draft / verify[1], [each / verify[1] for each in by_length(verify, k_max)]
    chain = {str(a): dict(zip(("k", "speedup"), best_k(a, c, v), strict=True)) for a in ACCEPTANCES}
    tree = {str(a): best_tree(a, c, v)._asdict() for a in ACCEPTANCES} if trees else None
    least = {f"{n:g}": least_acceptance(lambda a: best_k(a, c, v)[1], n) for n in TARGETS}
    grown = {f"{n:g}": least_acceptance(lambda a: best_tree(a, c, v).speedup, n) for n in TARGETS} if trees else None
    return {"c": c, "chain": chain, "tree": tree, "least_chain": least, "least_tree": grown}
