"""What is worth drafting on a slice."""

import pytest

from cascades.planning.speeds import ACCEPTANCES, Tree, best_k, best_tree, by_length, least_acceptance, worth

VERIFY = [1.0, 1.1, 1.1, 1.1, 1.1]


def test_a_pass_is_the_narrowest_that_holds_the_drafts():
    assert by_length({1: 1.0, 3: 1.5, 5: 2.0}, 4) == [1.0, 1.5, 1.5, 2.0, 2.0]


def test_the_best_k_weighs_acceptance_against_cost():
    assert best_k(0.0, 0.1, [1.0, 1.0, 1.0]) == (0, 1.0)
    k, speed = best_k(1.0, 0.25, [1.0, 1.0, 1.0])
    assert (k, speed) == (2, pytest.approx(3 / 1.5))
    assert best_k(0.5, 2.0, [1.0, 1.0]) == (0, 1.0)


def test_the_best_tree_weighs_its_levels_against_its_drafts():
    """Of four drafts, on one level and on two: 1 + 0.5 + 0.25 + 0.125 + 0.0625 and 1 + 0.5 + 0.25 + 0.25 + 0.125."""
    assert best_tree(0.5, 1.0, VERIFY) == (0, 0, 1.0)
    assert best_tree(0.5, 0.5, VERIFY) == Tree(4, 1, pytest.approx(1.9375 / 1.6))
    assert best_tree(0.5, 0.05, VERIFY) == Tree(4, 2, pytest.approx(2.125 / 1.2))
    assert best_tree(1.0, 0.05, VERIFY) == Tree(4, 4, pytest.approx(5 / 1.3))


@pytest.mark.parametrize("draft", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("acceptance", ACCEPTANCES)
def test_a_chain_is_a_tree(acceptance, draft):
    assert best_tree(acceptance, draft, VERIFY).speedup >= best_k(acceptance, draft, VERIFY)[1] - 1e-12


def test_the_least_acceptance_is_where_a_speed_begins():
    least = least_acceptance(lambda a: best_k(a, 0.05, VERIFY)[1], 2.0)
    assert least is not None and best_k(least, 0.05, VERIFY)[1] >= 2 > best_k(least - 0.001, 0.05, VERIFY)[1]
    assert least_acceptance(lambda a: best_k(a, 0.3, VERIFY)[1], 3.0) is None
    assert least_acceptance(lambda a: 1.0 + a, 1.0) == 0.0 and least_acceptance(lambda a: 1.0 + a, 2.0) == 1.0


def test_what_a_drafter_is_worth_does_not_depend_on_the_unit():
    one, thousand = worth(0.38, {1: 1.0, 3: 1.1}, 2), worth(380.0, {1: 1000.0, 3: 1100.0}, 2)
    assert one["c"] == thousand["c"] == pytest.approx(0.38) and one["least_chain"] == thousand["least_chain"]
    assert one["chain"]["0.8"] == {"k": 2, "speedup": pytest.approx(2.44 / 1.86)}
    assert one["tree"]["0.8"]["speedup"] == pytest.approx(best_tree(0.8, 0.38, [1.0, 1.1, 1.1]).speedup)


def test_a_look_up_costs_nothing_and_drafts_no_trees():
    said = worth(0.0, {1: 2.0, 5: 2.2}, 4, trees=False)
    assert said["c"] == 0 and said["chain"]["0.5"] == {"k": 4, "speedup": pytest.approx(1.9375 / 1.1)}
    assert said["tree"] is None and said["least_tree"] is None
