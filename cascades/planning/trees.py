"""What a tree of drafts would earn: by a law of acceptance that is assumed, as no loop here drafts trees yet."""

import math


def tree_tokens(acceptance: float, depth: int, nodes: int) -> list[float]:
    """Returns the tokens that a round earns with the best tree of 0, 1, … `nodes` drafts, the verifier's own included.

    Assumed: the children of a node are judged one after the other, and each is accepted with the probability a,
    whatever became of those before it. So the j-th child stands with a (1 - a)^(j - 1), and a draft with the product of
    that along its path. Second choices of a real drafter are worse than first ones, so that this flatters trees. A tree
    earns one token and the sum of these products: the best holds the likeliest drafts, of which a parent and an older
    sibling are never the less likely.

    Example: at a = 0.6 and a depth of 2 the likeliest drafts are the first child (0.6), its first child (0.36) and the
    second child (0.4 x 0.6 = 0.24): three of them earn 1 + 0.6 + 0.36 + 0.24 = 2.2 tokens.

    Args:
      acceptance: a. depth: most drafts of a path, which are as many passes of a drafter. nodes: most drafts of a tree.
    """
    # A path of `level` drafts passes over `missed` older siblings in all, in so many ways.
    kinds = (
        (acceptance**level * (1 - acceptance) ** missed, math.comb(level - 1 + missed, missed))
        for level in range(1, depth + 1)
        for missed in range(nodes)
    )
    tokens = [1.0]
    for chance, count in sorted(kinds, reverse=True):
        for _ in range(min(count, nodes + 1 - len(tokens))):
            tokens.append(tokens[-1] + chance)
    return tokens
