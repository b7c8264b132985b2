"""The figures of a request, from counts that are known."""

import numpy as np

from cascades.decoding import Info
from cascades.generation import results

INFO = Info(
    rounds=np.array([0, 5]),
    verifier_calls=np.array([0, 5]),
    drafter_steps=np.array([0, 9]),
    drafted=np.array([0, 8]),
    accepted=np.array([0, 6]),
    rejected=np.array([0, 2]),
    found=np.array([0, 3]),
    found_kept=np.array([0, 2]),
    by_rule=np.array([0, 1]),
    deferred=np.array([0.0, 2.5]),
    decided=np.array([0, 8]),
    log_p=np.array([0.0, -7.25]),
    histogram=np.array([[0, 0, 0], [1, 2, 2]]),
    drafted_at=np.array([[0, 0], [5, 3]]),
    accepted_at=np.array([[0, 0], [4, 2]]),
    drafter_nan=np.array([0, 1]),
)
TIMES = {"wall_s": 2.0, "compile_s": 3.0, "prefill_s": 0.25, "ttft_s": 0.5}


def test_rates():
    stats = results.stats(results.row(INFO, 1), 11, **TIMES)
    assert stats["block_efficiency"] == 2.2 and stats["tokens_per_s"] == 5.5
    assert stats["acceptance_rate"] == 0.75 and stats["rejection_rate"] == 0.25 and stats["deferral_rate"] == 0.3125
    assert stats["drafted_by_position"] == [5, 3]
    assert stats["acceptance_by_position"] == [0.8, 0.6667] and stats["accepted_histogram"] == [1, 2, 2]
    assert stats["drafter_nan"] == 1
    assert stats["log_p"] == -7.25 and stats["accepted_by_rule"] == 1


def test_a_rate_without_a_basis_is_none():
    stats = results.stats(results.row(INFO, 0), 0, **TIMES)
    rates = ("block_efficiency", "acceptance_rate", "rejection_rate", "deferral_rate")
    assert all(stats[name] is None for name in rates) and stats["tokens_per_s"] == 0.0


def test_totals_add_up():
    total = results.total([results.row(INFO, 1), results.row(INFO, 1)])
    assert int(total.accepted) == 12 and total.histogram.tolist() == [2, 4, 4]


def test_names():
    assert [results.origin_name(i) for i in range(7)] == [
        "prompt",
        "draft",
        "rule",
        "correction",
        "bonus",
        "verifier",
        "drafter",
    ]
    assert [results.finish_name(i) for i in (1, 2, 3, 4)] == ["eos", "length", "stop", "error"]
