"""A row does not see who shares its batch."""

import functools

import numpy as np
import pytest
from helpers import CONTROLLERS, crowd, decode, lab, request, texts


@functools.cache
def together(forced):
    return texts(decode(lab(bonus="verifier"), request(crowd()), forced=forced))


@pytest.mark.parametrize("forced", [3, -1])
def test_order_of_the_batch_does_not_matter(forced):
    # Rotated by the number of controllers, so that every row keeps its own.
    shift = 3 * len(CONTROLLERS)
    cases = crowd()[shift:] + crowd()[:shift]
    ours = texts(decode(lab(bonus="verifier"), request(cases), forced=forced))
    assert ours == together(forced)[shift:] + together(forced)[:shift]


@pytest.mark.parametrize("forced", [0, 3])
def test_a_row_alone_writes_what_it_writes_in_a_batch(forced):
    for i in range(0, len(crowd()), 5):
        assert texts(decode(lab(bonus="verifier"), request([crowd()[i]]), forced=forced)) == [together(forced)[i]]


def test_small_batches_write_what_the_large_one_writes():
    # Five rows, led by the first five controllers as in the large batch.
    for start in range(0, len(crowd()), 3 * len(CONTROLLERS)):
        cases = crowd()[start : start + 5]
        assert texts(decode(lab(bonus="verifier"), request(cases))) == together(-1)[start : start + 5]


def test_runs_repeat():
    assert texts(decode(lab(bonus="verifier"), request(crowd()))) == together(-1)


def test_rows_end_at_different_rounds():
    state = decode(lab(bonus="verifier"), request(crowd()))
    assert len(np.unique(state.info.rounds)) > 10
