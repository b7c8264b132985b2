"""What is worth drafting on a slice."""

import pytest

from cascades.planning.fit import best_k


def test_the_best_k_weighs_acceptance_against_cost():
    assert best_k(0.0, 0.1, [1.0, 1.0, 1.0]) == (0, 1.0)
    k, speed = best_k(1.0, 0.25, [1.0, 1.0, 1.0])
    assert (k, speed) == (2, pytest.approx(3 / 1.5))
    assert best_k(0.5, 2.0, [1.0, 1.0]) == (0, 1.0)
