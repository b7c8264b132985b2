"""Intervals by resampling examples, against closed forms and against simulated data of a known truth."""

import math
import statistics

import numpy as np
import pytest

from cascades.errors import UserError
from cascades.evaluation import bootstrap
from cascades.evaluation.tasks import metrics

MEAN = metrics.mean("mean", "A mean.", lambda record, _: record["x"]).value


def of(values):
    """Returns the statistics of a mean of them."""
    return np.stack([np.asarray(values, float), np.ones(len(values))], axis=1)


def quantile(share):
    return statistics.NormalDist().inv_cdf(share)


def test_a_draw_takes_as_many_examples_as_there_are():
    weights = bootstrap.resamples(50, 400, seed=1)
    assert weights.shape == (400, 50) and weights.dtype.kind == "i" and weights.min() == 0
    assert (weights.sum(1) == 50).all() and weights.mean() == 1
    # An example is left out of a draw with probability (1 - 1/50)^50.
    assert (weights == 0).mean() == pytest.approx(0.98**50, abs=0.01)


def test_a_seed_gives_one_array():
    assert (bootstrap.resamples(9, 5, 3) == bootstrap.resamples(9, 5, 3)).all()
    assert (bootstrap.resamples(9, 5, 3) != bootstrap.resamples(9, 5, 4)).any()


def test_the_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(0).gamma(2.0, size=2000)
    weights = bootstrap.resamples(2000, 4000, seed=0)
    low, high = bootstrap.interval(of(values), MEAN, weights, 0.9)
    error = values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - quantile(0.95) * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + quantile(0.95) * error, abs=0.1 * error)
    draws = weights @ values / len(values)
    assert bootstrap.lower_bound(draws, 0.95) == pytest.approx(low)  # one-sided at 95% is the lower end of 90%
    assert bootstrap.lower_bound(draws, 0.99) == pytest.approx(values.mean() - quantile(0.99) * error, abs=0.2 * error)


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(7)
    weights = bootstrap.resamples(80, 300, seed=7)
    inside = below = 0
    for _ in range(300):
        scores = rng.random(80) < 0.4
        low, high = bootstrap.interval(of(scores), MEAN, weights, 0.9)
        inside += low <= 0.4 <= high
        below += bootstrap.lower_bound(weights @ scores / 80, 0.9) <= 0.4
    assert 0.85 <= inside / 300 <= 0.95 and 0.85 <= below / 300 <= 0.95


def test_pairing_shrinks_the_interval_of_a_difference():
    rng = np.random.default_rng(3)
    hard = rng.normal(size=400)  # some examples are hard for both systems
    ours, theirs = (of(5 + hard + 0.3 * rng.normal(size=400)) for _ in range(2))
    weights = bootstrap.resamples(400, 1000, seed=3)
    together = bootstrap.paired(ours, theirs, MEAN, weights, 0.9).difference
    shuffled = theirs[rng.permutation(400)]
    apart = bootstrap.paired(ours, shuffled, MEAN, weights, 0.9).difference
    assert together.value == pytest.approx(apart.value)
    # Standard errors of sqrt(2) * 0.3 and sqrt(2) * sqrt(1.09) over 20: 3.5 times.
    assert 3 < (apart.high - apart.low) / (together.high - together.low) < 4
    error = math.sqrt(2) * 0.3 / 20
    assert together.high - together.low == pytest.approx(2 * quantile(0.95) * error, rel=0.1)


def test_difference_and_ratio():
    ours, theirs = of([1, 0, 1, 1]), of([1, 1, 0, 1])
    found = bootstrap.paired(ours, theirs, MEAN, np.array([[1, 1, 1, 1], [2, 2, 0, 0], [2, 0, 2, 0]]), 0.9)
    # The draws have 3/4 and 3/4, 2/4 and 4/4, 4/4 and 2/4.
    assert found.difference == (0.0, -0.5, 0.5, -0.5) and found.ratio == (1.0, 0.5, 2.0, 0.5)


def test_equal_systems_differ_by_nothing():
    same = of(np.random.default_rng(0).random(20))
    found = bootstrap.paired(same, same, MEAN, bootstrap.resamples(20, 50, 0))
    assert found.difference == (0, 0, 0, 0) and found.ratio == (1, 1, 1, 1)


def test_a_baseline_of_nothing():
    weights = bootstrap.resamples(4, 200, 0)
    found = bootstrap.paired(of([1, 1, 1, 1]), of([0, 0, 0, 1]), MEAN, weights)
    assert (
        found.ratio.value == 4.0 and found.ratio.high == math.inf and found.ratio.low == pytest.approx(4 / 3, abs=0.7)
    )
    none = bootstrap.paired(of([0, 0]), of([0, 0]), MEAN, bootstrap.resamples(2, 9, 0)).ratio
    assert all(map(math.isnan, none))


def test_draws_without_a_value_are_left_out():
    some = np.array([[1.0, 1.0], [0.0, 0.0]])  # the second example is none of the metric's
    weights = np.array([[1, 1], [0, 2], [2, 0]])
    assert bootstrap.interval(some, MEAN, weights) == (1.0, 1.0)
    assert all(map(math.isnan, bootstrap.interval(np.zeros((2, 2)), MEAN, weights)))


def test_it_resamples_a_corpus_metric():
    texts, references = ["a b c d e", "f g h i j", "a b x y z"], ["a b c d e", "f g h k l", "q r s t u"]
    metric = metrics.bleu("to")
    rows = np.array([metric.statistics({"to": b}, a) for a, b in zip(texts, references, strict=True)], float)
    low, high = bootstrap.interval(rows, metric.value, np.array([[1, 1, 1], [3, 0, 0], [0, 0, 3]]), 0.99)
    assert (low, high) == (0.0, pytest.approx(100.0))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bootstrap.resamples(1, 5, 0), "examples of a bootstrap must be a whole number from 2"),
        (lambda: bootstrap.resamples(5, 0, 0), "draws of a bootstrap must be a whole number from 1"),
        (lambda: bootstrap.resamples(5, 5, -1), "seed of a bootstrap"),
        (lambda: bootstrap.interval(np.ones((3, 2)), MEAN, np.ones((4, 2))), r"not \(3, 2\) and \(4, 2\)"),
        (lambda: bootstrap.interval(np.ones((3, 2)), MEAN, np.ones((4, 3)), 95.0), "level .* from 0 to 1"),
        (lambda: bootstrap.interval(np.ones((3, 2)), MEAN, np.ones((4, 3)), 1.0), "level .* between 0 and 1"),
        (lambda: bootstrap.lower_bound(np.ones(3), 0.0), "confidence .* between 0 and 1"),
        (lambda: bootstrap.paired(np.ones((3, 2)), np.ones((4, 2)), MEAN, np.ones((4, 3))), "the same examples"),
    ],
)
def test_what_cannot_be_resampled(call, words):
    with pytest.raises(UserError, match=words):
        call()
