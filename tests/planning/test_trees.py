"""What a tree earns: against every tree that there is, walked as a verifier would."""

import itertools

import pytest

from cascades.planning.trees import tree_tokens

Node = tuple[int, ...]  # the places among its siblings along a path, from 0


def trees(nodes: int, depth: int):
    """Yields every tree of so many drafts: sets of paths that hold the parent and the older sibling of each."""
    places = itertools.chain.from_iterable(
        itertools.product(range(nodes), repeat=level) for level in range(1, depth + 1)
    )
    for chosen in itertools.combinations(places, nodes):
        held = set(chosen)
        if all((len(p) == 1 or p[:-1] in held) and (p[-1] == 0 or (*p[:-1], p[-1] - 1) in held) for p in held):
            yield held


def walked(tree: set[Node], acceptance: float, at: Node = ()) -> float:
    """Expected tokens from a node on: its children are judged in turn, and the verifier says the token behind."""
    total, left = 0.0, 1.0
    for place in itertools.count():
        child = (*at, place)
        if child not in tree:
            return total + left
        total += left * acceptance * (1 + walked(tree, acceptance, child))
        left *= 1 - acceptance
    raise AssertionError


@pytest.mark.parametrize("acceptance", [0.0, 0.2, 0.5, 0.6, 0.85, 1.0])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_no_tree_earns_more_and_one_earns_as_much(acceptance, depth):
    said = tree_tokens(acceptance, depth, 4)
    assert len(said) == 5 and said[0] == 1.0
    for nodes in range(1, 5):
        assert said[nodes] == pytest.approx(max(walked(tree, acceptance) for tree in trees(nodes, depth)))


def test_the_example_of_its_words():
    assert tree_tokens(0.6, 2, 3) == pytest.approx([1.0, 1.6, 1.96, 2.2])


def test_as_deep_as_its_drafts_it_is_no_worse_than_a_chain():
    for nodes, tokens in enumerate(tree_tokens(0.7, 8, 8)):
        assert tokens >= sum(0.7**i for i in range(nodes + 1)) - 1e-12
