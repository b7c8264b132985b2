"""Costs as they are measured on a machine that does other things too, and as a run corrects and tells them."""

import logging

import jax
import numpy as np
import pytest
import tiny

from cascades import lookahead, rules
from cascades.decoding import Plan
from cascades.decoding.plan import fine_widths
from cascades.generation import Settings, Shapes, build, complete, load_pair, queries
from cascades.generation import clock as clocks
from cascades.generation import costs as module
from cascades.generation import engine as engines
from cascades.generation import slots as rows
from cascades.generation.costs import Trial, knob, measure_costs, trials
from cascades.testing import table_model

DRAFT, CATCH_UP, FURTHER, CALL = 0.08, 0.13, 0.02, 0.3
FAST = {1: 1.0, 2: 1.4, 3: 1.5, 4: 1.6, 5: 1.7, 9: 2.3, 10: 2.4}  # what a pass takes by its width, in no unit


def plan_of(k_max, widths, bonus="verifier"):
    model = table_model(6)
    return Plan(model, model, (rules.lossless,), lookahead.fixed(2), k_max, 6, widths=widths, bonus=bonus)


class Machine:
    """Times rounds of a plan by what is true of it, times `slower(number of the round)`."""

    def __init__(self, plan, slower=lambda number: 1.0, unit=0.01, rows=1):
        self.plan, self.slower, self.unit, self.trials = plan, slower, unit, []
        self.width = plan.catch_up(rows)

    @property
    def true(self):
        return np.array([*(FAST[width] for width in self.plan.passes), DRAFT, CATCH_UP, FURTHER])

    def __call__(self, trial):
        self.trials.append(trial)
        ran = self.ran(trial) * trial.rounds
        return self.unit * (CALL + float(ran @ self.true)) * self.slower(len(self.trials) - 1), ran

    def ran(self, trial):
        ran, lacks = np.zeros(len(self.plan.passes) + 2), trial.lacks
        ran[next(at for at, width in enumerate(self.plan.passes) if width > trial.drafts)] = 1
        scores = trial.drafts + (self.plan.bonus == "target")
        while scores and lacks >= 2:
            lacks -= lacks if lacks <= self.width else min(lacks - 1, self.width)
            ran[-1] += 1
        ran[-2] = max(scores - 1, 0) + (scores > 0 and lacks == 1)
        return clocks.ran(ran, self.plan.passes, 3.0 if trial.long else 0.0)


PLANS = [(k, widths) for k in (1, 2, 3, 4, 8, 9) for widths in ((), fine_widths(k))]


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("bonus", ["verifier", "target"])
@pytest.mark.parametrize(("k_max", "widths"), PLANS, ids=str)
def test_each_pass_is_told_from_the_others(k_max, widths, bonus, rows):
    """Of drafts of one token too, where a wide pass and a drafter step always come together."""
    machine = Machine(plan_of(k_max, widths, bonus), rows=rows)
    seconds, call = measure_costs(machine.plan, machine, long=True)
    np.testing.assert_allclose(seconds, 0.01 * machine.true, rtol=1e-6)
    assert call == pytest.approx(0.01 * CALL)
    seconds, call = measure_costs(machine.plan, machine)
    np.testing.assert_allclose(seconds, 0.01 * machine.true * [*np.ones(len(seconds) - 1), 0], rtol=1e-6, atol=1e-12)
    lengths = {trial.drafts for trial in machine.trials}
    assert lengths >= {width - 1 for width in machine.plan.passes} and max(lengths) == k_max


def assert_near(found, machine):
    """To a few per cent: what a round takes, relative to a pass over one token."""
    true, k = machine.true, machine.plan.k_max
    relative = found / found[0]
    np.testing.assert_allclose(relative[:-3], true[:-3], rtol=0.03)
    assert relative[-4] + k * relative[-3] == pytest.approx(true[-4] + k * DRAFT, rel=0.03)
    np.testing.assert_allclose(relative[-3:-1], true[-3:-1], atol=0.03)


@pytest.mark.parametrize("widths", [(), fine_widths(8)], ids=str)
def test_a_busy_stretch_changes_nothing_whenever_it_is(widths):
    """It is as long as one likes: it tears the repeats in which it begins and ends, and is even in the others."""
    plan = plan_of(8, widths)
    count = 5 * len(trials(plan))
    for start in range(0, count, 2):
        for length in (1, 3, 6, 12, count):
            machine = Machine(plan, lambda n, start=start, length=length: 2.0 if start <= n < start + length else 1.0)
            assert_near(measure_costs(plan, machine)[0], machine)
            assert len(machine.trials) == count


@pytest.mark.parametrize("widths", [(), fine_widths(8)], ids=str)
def test_a_first_round_without_drafts_that_is_slow_does_not_make_drafting_cheap(widths):
    plan = plan_of(8, widths)
    slow = len(trials(plan))
    for factor in (1.15, 2.0):
        machine = Machine(plan, lambda n, factor=factor: factor if n < 5 or n == slow else 1.0)
        assert_near(measure_costs(plan, machine)[0], machine)


def test_noise_is_averaged():
    plan = plan_of(8, fine_widths(8))
    errors = []
    for seed in range(20):
        noise = np.random.default_rng(seed)
        machine = Machine(plan, lambda n, noise=noise: float(np.exp(0.03 * noise.normal())))
        found, _ = measure_costs(plan, machine)
        rounds = (found[1:4] + found[-3] * np.array([2, 4, 8])) / found[0]
        errors.append(np.max(np.abs(rounds / (machine.true[1:4] + DRAFT * np.array([2, 4, 8])) - 1)))
        assert (np.diff(found[:4]) >= 0).all() and (found >= 0).all()
    assert np.median(errors) < 0.05


@pytest.mark.parametrize("late", [0.0, 1.0])
def test_a_call_that_seems_to_take_longer_than_its_rounds_makes_no_pass_cost_less_than_nothing(late):
    """Of small models most of a round is the call, and three repeats leave noise."""
    plan = plan_of(3, ())
    machine = Machine(plan)

    def time_round(trial):
        seconds, ran = machine(trial)
        return (seconds if trial.rounds else seconds * 10 + late), ran

    seconds, call = measure_costs(plan, time_round)
    assert (seconds[: len(plan.passes)] > 0).all() and (seconds >= 0).all() and call > 0
    clocks.costs(clocks.measured(seconds, call), plan.passes)


def test_a_large_model_is_not_timed_for_long():
    machine = Machine(plan_of(8, ()), unit=0.5)
    measure_costs(machine.plan, machine)
    assert len(machine.trials) == 3 * len(trials(machine.plan))


def test_costs_on_a_command_line():
    assert knob(0.0812, (1.0, 1.25)) == '--gin.COSTS="(0.081, (1.000, 1.250))"'
    assert knob(0.0812, (1.0, 1.25), 0.1) == '--gin.COSTS="(0.081, (1.000, 1.250), 0.100)"'


K_MAX = 4
SHAPES = Shapes(2, 128)
GIVEN = (0.25, (1.0, *(1.5,) * K_MAX), 0.3)


@pytest.fixture(scope="module")
def pair(tiny_files):
    return load_pair(tiny.specs(verifier=tiny_files.verifier, drafter=tiny_files.drafter)["pair"])


def engine_of(pair, **knobs):
    knobs = {"rule": rules.lossless, "k_max": K_MAX, "max_new_tokens": 24, "context": 128, "temperature": 1.0} | knobs
    return build(pair, Settings(batch_size=2, ignore_eos=True, **knobs))


@pytest.fixture(scope="module")
def engine(pair):
    return engine_of(pair)


@pytest.fixture(scope="module")
def given(pair):
    return engine_of(pair, costs=GIVEN)


def answers(engine, rounds=1):
    return complete(engine, queries(engine, ["the quick", "a small model"]), rounds=rounds, shapes=SHAPES)


def test_a_round_that_is_timed_runs_what_it_is_said_to(engine):
    compiled = module.programs_for(engine, SHAPES, (1, 2, 3))
    time_round = module.timer(engine, compiled, 40)
    plan = engine.programs.plan
    machine = Machine(plan, rows=SHAPES.batch)
    for trial in (*trials(plan), Trial(2), Trial(1, 9), Trial(1, 17)):
        seconds, ran = time_round(trial)
        assert seconds > 0
        np.testing.assert_array_equal(ran, machine(trial)[1])
    belief = compiled.belief
    assert belief is not None and not belief.given and (belief.seconds[:-3] > 0).all()


def test_a_run_corrects_its_costs_tells_them_and_compiles_nothing_for_it(engine, monkeypatch, caplog):
    """The clock says of every call that passes take as long as `true`: that is what is believed in the end."""
    true = np.array([0.01, 0.013, 0.001, 0.003, 0.0])
    compiled = module.programs_for(engine, SHAPES, (1, 2, 3))
    monkeypatch.setattr(compiled, "belief", clocks.measured(np.array([0.01, 0.011, 0.002, 0.002, 0.0])))
    monkeypatch.setattr(compiled, "costs", clocks.costs(compiled.belief, engine.programs.plan.passes))
    clocked, seen = clocks.clocked, []

    def learnt(belief, ran, seconds):
        seen.append(ran)
        return clocked(belief, ran, float(ran @ true))

    monkeypatch.setattr(clocks, "clocked", learnt)
    told, recost = [], engine.programs.plan.lookahead.recost

    def spy(state, costs):
        told.append(costs)
        return recost(state, costs)

    plan = engine.programs.plan
    spied = engine._replace(
        programs=engine.programs._replace(plan=plan._replace(lookahead=plan.lookahead._replace(recost=spy)))
    )
    answers(spied)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        results = [result for _ in range(8) for result in answers(spied)]
        assert not [record for record in caplog.records if "ompil" in record.getMessage()]
    assert told and sum(ran[1:].any() for ran in seen) > 10  # rounds with drafts
    for ran in seen[-20:]:
        assert ran @ compiled.belief.seconds == pytest.approx(ran @ true, rel=0.05)
    costs = results[-1].stats["costs"]
    assert costs["given"] is False and costs["verify"][0] == 1.0 and costs["verify"][1] == costs["verify"][K_MAX]
    assert costs["unit_s"] == pytest.approx(0.01, rel=0.1)
    assert costs["verify"] == [round(each, 4) for each in np.asarray(compiled.costs.verify).tolist()]


def test_a_lookahead_that_is_told_has_the_costs_in_every_row_and_nothing_else_changes(engine):
    compiled = module.programs_for(engine, SHAPES, (1, 2, 3))
    state = engines.vacant(engine, compiled)
    ran, before = np.array([1.0, 1.0, 4.0, 0.0]), jax.tree.map(np.asarray, state.lookahead)
    compiled.reached |= {(0.0, 0), (0.0, 1)}
    for _ in range(3):
        module.learn(engine, compiled, ran, 0.0, 2 * float(ran @ compiled.belief.seconds[:-1]))
    told = module.corrected(engine, compiled, state, 0.0)
    assert np.asarray(told.lookahead.verify).tolist() == [np.asarray(compiled.costs.verify).tolist()] * 2
    assert np.asarray(told.lookahead.draft).tolist() == [float(compiled.costs.draft)] * 2
    same = jax.tree.map(lambda old, new: bool(np.array_equal(old, new)), before, told.lookahead)
    assert {name for name, value in same._asdict().items() if not value} <= {"draft", "verify", "rare"}
    assert told._replace(lookahead=None).tokens is state.tokens
    assert module.corrected(engine, compiled, told, 0.0) is told
    belief = compiled.belief
    module.learn(engine, compiled, np.zeros(4), 0.0, 1.0)  # nobody ran
    assert compiled.belief is belief


def test_a_round_that_is_tried_has_the_drafts_that_it_should_and_changes_no_text(engine, pair, monkeypatch):
    greedy = engine_of(pair, temperature=0.0)
    plain = answers(greedy)
    proceed, ran = engines.proceed, []

    def spy(engine, compiled, state, stop, rounds, forced=-1, eager=False):
        ran.append((rounds, forced))
        return proceed(engine, compiled, state, stop, rounds, forced, eager)

    monkeypatch.setattr(engines, "proceed", spy)
    tried = iter([0, K_MAX, None] * 99)
    monkeypatch.setattr(clocks, "trial", lambda belief, passes, reach: next(tried))
    again = answers(greedy, rounds=2)
    assert ran[:4] == [(1, -1), (1, 0), (1, K_MAX), (2, -1)]  # the first shows its token as soon as it is there
    assert [result.token_ids for result in again] == [result.token_ids for result in plain]


def test_given_costs_stay_whatever_the_clock_says_so_that_a_run_repeats(given, monkeypatch):
    first = answers(given)
    compiled = given.compiled[SHAPES]
    costs = first[0].stats["costs"]
    assert (costs["draft"], costs["catch_up"], costs["verify"]) == (0.25, 0.3, [1.0, *(1.5,) * K_MAX])
    assert costs["given"] is True
    busy = iter(np.random.default_rng(0).exponential(0.2, 10_000).cumsum())
    monkeypatch.setattr(rows.time, "perf_counter", lambda: next(busy))
    again = answers(given)
    assert [result.token_ids for result in again] == [result.token_ids for result in first]
    assert [result.stats["drafter_steps"] for result in again] == [result.stats["drafter_steps"] for result in first]
    assert np.asarray(compiled.costs.verify).tolist() == [1.0, *(1.5,) * K_MAX] and float(compiled.costs.draft) == 0.25
    assert again[0].stats["costs"]["unit_s"] > 0


def test_what_has_no_costs_tells_none_and_is_not_timed(pair, monkeypatch):
    monkeypatch.setattr(module, "measure_costs", lambda *_: pytest.fail("timed"))
    for knobs in ({"method": "verifier_only"}, {"method": "token_cascade", "rule": rules.chow}):
        assert [result.stats["costs"] for result in answers(engine_of(pair, **knobs), rounds=64)] == [None, None]
