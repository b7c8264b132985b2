"""What passes take, learnt from a machine whose true costs are known."""

import jax.numpy as jnp
import numpy as np
import pytest

from cascades.decoding import Clock
from cascades.generation import clock
from cascades.lookahead import given_costs

UNIT = 0.02  # seconds of a verifier pass over one token
MACHINES = {  # widths, and what passes, a drafter step, catching up and a token behind 512 further slots take
    "bfloat16": ((1, 3, 5, 9), [1.0, 1.1, 1.21, 1.42, 0.08, 0.1, 0.015]),
    "float32": ((1, 9), [1.0, 2.3, 0.1, 0.15, 0.0]),
    "two cores": ((1, 9), [1.0, 1.5, 0.37, 0.5, 0.0]),
    "accelerator": ((1, 9), [1.0, 1.05, 0.2, 0.22, 0.001]),
}


def place(widths, k):
    return next(at for at, width in enumerate(widths) if width > k)


def ran(widths, k, caught_up=False, reach=0.0):
    """The passes of a round of `k` drafts."""
    counts = np.zeros(len(widths) + 2)
    counts[place(widths, k)] = 1
    if k:
        counts[-2:] = (k - 1, 1) if caught_up else (k, 0)
    return clock.ran(counts, widths, reach)


def rounds(belief, widths, costs, generator, lengths, slower=1.0, reach=0.0):
    """Clocks a round of each of `lengths`: noise of 5%, and 3% of them three times as slow."""
    for k in lengths:
        counts = ran(widths, k, generator.random() < 0.4, reach)
        seconds = slower * UNIT * counts @ costs * np.exp(0.05 * generator.normal())
        belief = clock.clocked(belief, counts, seconds * (3 if generator.random() < 0.03 else 1))
    return belief


def of_rounds(seconds, widths):
    """What drafting each length takes, relative to drafting none."""
    k = np.arange(widths[-1])
    return (seconds[[place(widths, each) for each in k]] + k * seconds[-3]) / seconds[0]


def error(belief, widths, costs):
    return float(np.max(np.abs(of_rounds(belief.seconds, widths) / of_rounds(np.asarray(costs), widths) - 1)))


@pytest.mark.parametrize("factor", [0.7, 1.3])
@pytest.mark.parametrize("name", MACHINES)
def test_costs_that_are_30_per_cent_wrong_are_corrected_in_50_rounds(name, factor):
    """A drafter step of 0.08 cannot be told from noise of 0.05 times 2 in so few: what a round takes can."""
    widths, costs = MACHINES[name]
    costs = np.asarray(costs)
    for wrong in range(1, len(costs) - 1):
        first = costs.copy()
        first[wrong] *= factor
        errors, own = [], []
        for seed in range(16):
            generator = np.random.default_rng(seed)
            lengths = generator.integers(0, widths[-1], 50)
            belief = rounds(clock.measured(UNIT * first), widths, costs, generator, lengths)
            errors.append(error(belief, widths, costs))
            own.append(abs(belief.seconds[wrong] / belief.seconds[0] / costs[wrong] - 1))
        assert np.median(errors) < 0.05 and np.quantile(errors, 0.9) < 0.09, (wrong, errors)
        if wrong < len(widths) or costs[wrong] > 0.3 and wrong == len(widths):  # of four widths each is seen less often
            assert np.median(own) < (0.06 if len(widths) > 2 else 0.05), (wrong, own)


@pytest.mark.parametrize("lengths", [[8], [0, 8], [3, 4, 8]], ids=str)
@pytest.mark.parametrize("name", MACHINES)
def test_a_machine_that_is_busy_for_a_while_moves_all_costs_together(name, lengths):
    widths, costs = MACHINES[name]
    errors = []
    for seed in range(8):
        generator = np.random.default_rng(seed)
        belief = clock.measured(UNIT * np.asarray(costs))
        belief = rounds(belief, widths, costs, generator, generator.integers(0, 9, 100))
        quiet = belief.unit
        belief = rounds(belief, widths, costs, generator, generator.choice(lengths, 40), slower=2.0)
        errors.append(error(belief, widths, costs))
        assert belief.unit == pytest.approx(2 * quiet, rel=0.25)
        belief = rounds(belief, widths, costs, generator, generator.choice(lengths, 40))
        errors.append(error(belief, widths, costs))
        assert belief.unit == pytest.approx(quiet, rel=0.25)
    assert np.median(errors) < 0.04 and max(errors) < 0.1, errors


def test_a_stall_is_no_cost_of_the_pass_that_it_fell_on():
    widths, costs = MACHINES["float32"]
    generator = np.random.default_rng(0)
    belief = rounds(clock.measured(UNIT * np.asarray(costs)), widths, costs, generator, [0, 8] * 30)
    before = of_rounds(belief.seconds, widths)
    belief = clock.clocked(belief, ran(widths, 8), 5.0)  # the lid was shut
    np.testing.assert_allclose(of_rounds(belief.seconds, widths), before, rtol=0.02)
    belief = rounds(belief, widths, costs, generator, [0, 8] * 4)
    assert belief.unit == pytest.approx(UNIT, rel=0.1) and error(belief, widths, costs) < 0.05


def test_of_costs_that_were_given_the_clock_tells_the_unit_alone():
    widths, costs = MACHINES["float32"]
    wrong = given_costs(8, 0.3, (1.0, *(1.5,) * 8), 0.2)  # whatever the user says
    belief = clock.given(wrong, widths)
    generator = np.random.default_rng(1)
    for k in generator.integers(0, 9, 30):
        counts = ran(widths, k)
        seconds = UNIT * counts @ [1.0, 1.5, 0.3, 0.2, 0.0] * np.exp(0.05 * generator.normal())
        belief = clock.clocked(belief, counts, seconds)
    np.testing.assert_allclose(belief.seconds / belief.seconds[0], [1.0, 1.5, 0.3, 0.2, 0.0], rtol=1e-4)
    assert belief.unit == pytest.approx(UNIT, rel=0.05)


def test_a_drafter_that_was_measured_to_cost_nothing_may_turn_out_to_cost_something():
    widths, costs = MACHINES["two cores"]
    generator = np.random.default_rng(2)
    first = UNIT * np.array([1.0, 1.5, 0.0, 0.0, 0.0])
    belief = rounds(clock.measured(first), widths, costs, generator, generator.integers(0, 9, 200))
    assert error(belief, widths, costs) < 0.05


def test_no_pass_takes_less_than_nothing_however_short_a_call_was():
    belief = clock.measured(UNIT * np.asarray(MACHINES["bfloat16"][1]))
    for k in (8, 1, 0, 8):
        belief = clock.clocked(belief, ran((1, 3, 5, 9), k), 0.0)
    assert (belief.seconds[:4] > 0).all() and (belief.seconds >= 0).all() and np.isfinite(belief.covariance).all()


def test_counts_and_costs_are_in_the_order_of_the_clock():
    counts = clock.kinds(Clock(jnp.asarray([3, 1, 2], jnp.int32), jnp.int32(7), jnp.int32(4)))
    assert counts.tolist() == [3, 1, 2, 7, 4]
    costs = clock.costs(clock.measured(np.array([2.0, 2.5, 3.0, 0.5, 1.0, 0.1])), (1, 3, 5))
    np.testing.assert_allclose(costs.verify, [1, 1.25, 1.25, 1.5, 1.5])
    assert float(costs.draft) == 0.25 and float(costs.catch_up) == 0.5
    np.testing.assert_allclose(clock.ran(counts, (1, 3, 5), 2.0), [*counts, 2 * (3 + 3 + 10)])


@pytest.mark.parametrize("seed", range(5))
def test_a_narrow_pass_that_was_measured_too_dear_follows_a_wider_one_that_runs(seed):
    """Nobody runs a pass of which more is believed than of a wider one; it must not make that one dear as well.

    From the longest drafts alone, the clock cannot tell a drafter step from a verifier pass: their sum is what counts.
    """
    widths, costs = MACHINES["bfloat16"]
    belief = clock.measured(UNIT * np.array([1.0, 1.1, 1.9, 1.95, 0.08, 0.1, 0.0]))
    belief = rounds(belief, widths, costs, np.random.default_rng(seed), [0, 8, 8, 7] * 15)
    found = clock.costs(belief, widths)
    assert found.verify[8] + 8 * found.draft == pytest.approx(1.42 + 8 * 0.08, rel=0.07)
    assert found.verify[4] <= found.verify[8]


def test_passes_stand_in_order_and_what_is_known_well_counts_for_more():
    values, weights = np.array([2.0, 5.0, 3.0, 4.0]), np.array([1.0, 1.0, 9.0, 1.0])
    np.testing.assert_allclose(clock.rising(values, weights), [2.0, 3.2, 3.2, 4.0])
    np.testing.assert_allclose(clock.rising(values[::-1], np.ones(4)), [3.5] * 4)
    np.testing.assert_allclose(clock.rising(np.sort(values), weights), np.sort(values))


def test_what_has_moved_is_what_a_round_takes():
    old = given_costs(4, 0.1, (1.0, 1.2, 1.2, 1.2, 1.2), 0.1)
    assert clock.moved(old, old) == 0
    assert clock.moved(given_costs(4, 0.15, (1.0, 1.2, 1.2, 1.2, 1.2), 0.1), old) == pytest.approx(0.2 / 1.6, rel=1e-4)
    assert clock.moved(given_costs(4, 0.1, (1.0, 1.2, 1.2, 1.2, 1.2), 0.21), old) == pytest.approx(0.1, rel=1e-4)


def with_trials(belief, widths, costs, generator, k, count):
    """Clocks rounds of `k` drafts, and whatever is to be tried between them; returns what was tried too."""
    tried = []
    for _ in range(count):
        drafts = clock.trial(belief, widths)
        if drafts is not None:
            tried.append(drafts)
            belief = clock.tried(belief, widths, drafts)
        belief = rounds(belief, widths, costs, generator, [k if drafts is None else drafts], slower=1.4)
    return belief, tried


@pytest.mark.parametrize("k", [0, 8])
@pytest.mark.parametrize("name", ["bfloat16", "float32", "accelerator"])
def test_what_is_never_run_is_tried_until_it_is_known_and_takes_little_time(name, k):
    """While drafts are long, nobody passes over one token; while there are none, over nothing else.

    The machine is 40% slower than when it was measured, and what is avoided was measured 30% too dear.
    """
    widths, costs = MACHINES[name]
    first = UNIT * np.asarray(costs)
    first[[0] if k else slice(1, len(widths))] *= 1.3
    errors, counts = [], []
    for seed in range(8):
        belief, tried = with_trials(clock.measured(first), widths, costs, np.random.default_rng(seed), k, 600)
        taken, without = (of_rounds(np.asarray(each), widths)[[widths[-1] - 1]] for each in (belief.seconds, costs))
        errors.append(float(np.max(np.abs(taken / without - 1))))
        counts.append(len(tried))
        assert (0 if k else widths[-1] - 1) in tried[:12]
    assert np.median(errors) < 0.06, errors
    takes = of_rounds(np.asarray(costs), widths)
    assert max(counts) * (1.0 if k else takes[-1] - 1) <= 0.025 * 600 * takes[k]


def test_what_is_known_or_given_is_not_tried():
    widths, costs = MACHINES["bfloat16"]
    belief = clock.measured(UNIT * np.asarray(costs))
    assert clock.trial(belief, widths) is None  # not at once
    assert clock.trial(belief._replace(rest=0.0), widths) is not None
    generator = np.random.default_rng(0)
    for _ in range(3):
        belief = rounds(belief, widths, costs, generator, [0, 2, 4, 8] * 10)
    assert belief.rest == 0 and clock.trial(belief, widths) is None
    assert clock.trial(clock.given(given_costs(8, 0.1), widths), widths) is None
    nothing_to_draft = clock.measured(np.array([1.0, 0.0, 0.0, 0.0]))._replace(rest=0.0)
    assert clock.trial(nothing_to_draft, (1,)) is None


def test_a_long_text_makes_wide_passes_dearer_than_narrow_ones():
    widths, costs = MACHINES["bfloat16"]
    generator = np.random.default_rng(0)
    belief = clock.measured(UNIT * np.array([*costs[:-1], 0.0]))
    belief = rounds(belief, widths, costs, generator, [0, 8, 4] * 20)
    before = clock.costs(belief, widths)
    np.testing.assert_allclose(clock.costs(belief, widths, 3.0).verify, before.verify, rtol=0.02)
    belief = rounds(belief, widths, costs, generator, [0, 8, 4] * 20, reach=3.0)
    near, far = clock.costs(belief, widths), clock.costs(belief, widths, 3.0)
    np.testing.assert_allclose(near.verify, before.verify, rtol=0.08)
    assert far.verify[8] == pytest.approx((1.42 + 9 * 3 * 0.015) / (1 + 3 * 0.015), rel=0.06)
    assert far.draft == pytest.approx(float(near.draft) / (1 + 3 * 0.015), rel=0.05)
    assert [clock.reach(slots) for slots in (128, 512, 2048, 8192)] == [0, 0, 3, 15]
