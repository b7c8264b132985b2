"""A plan's steps are the loop's own: what runs cannot change without the plan."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from cascades import rules
from cascades.decoding import FREE, compile_plan
from cascades.decoding import draft as drafting
from cascades.decoding import round as rounds
from cascades.models import DecoderConfig
from cascades.planning.chips import CHIPS
from cascades.planning.passes import Cost, Loop, Side, Sizes, draft_cost, held, loop_of, verify_cost, whole_cost
from cascades.sharding import layout, mesh_of

CONFIG = DecoderConfig(
    vocab_size=96, num_layers=1, d_model=32, d_ff=64, num_heads=2, num_kv_heads=2, head_dim=16, context_length=64
)
SIZES = Sizes(batch=2, slots=32, vocabulary=90, k_max=3)
STEPS = {
    "drafter_step": (drafting, draft_cost),
    "verifier_pass": (rounds, lambda loop: verify_cost(loop, 4)),
    "verdict": (rounds, lambda loop: verify_cost(loop, 4)),
}


@pytest.fixture(scope="module")
def side() -> Side:
    return Side(CONFIG, layout(mesh_of(jax.devices()[:1], 1, 1), "tensor"))


@pytest.fixture(scope="module")
def loop(side) -> Loop:
    return loop_of(side, side, SIZES, rules.token_v3)


def rounds_of(loop: Loop) -> None:
    """Traces the program that a run would compile."""
    stop = jnp.zeros((SIZES.batch,), bool)
    given = loop.verifier_params, loop.drafter_params, loop.state, stop, jnp.int32(1), jnp.int32(FREE)
    jax.eval_shape(compile_plan(loop.plan).run, *given)


@pytest.mark.parametrize("name", STEPS)
def test_a_plan_compiles_the_function_that_the_loop_runs(monkeypatch, loop, name):
    module, planned = STEPS[name]
    true, seen = getattr(module, name), []

    def watched(plan, *given):
        seen.append(plan)
        return true(plan, *given)

    monkeypatch.setattr(module, name, watched)
    rounds_of(loop)
    assert seen and all(plan is loop.plan for plan in seen)
    seen.clear()
    planned(loop)
    assert seen == [loop.plan]


def test_what_the_loop_does_beside_its_models_is_in_the_plan(monkeypatch, loop):
    """Work that is added to a verdict, or to a choice, is told as the share of rules and sampling."""
    before = verify_cost(loop, 4), draft_cost(loop)
    true_keep, true_draw = rounds.keep, drafting.draw

    def keep(drafts, lengths, q_logits, p_logits, *given):
        return true_keep(drafts, lengths, q_logits, jnp.sort(p_logits, axis=-1), *given)

    monkeypatch.setattr(rounds, "keep", keep)
    monkeypatch.setattr(drafting, "draw", lambda probs, keys: true_draw(jnp.sort(probs, axis=-1), keys))
    after = verify_cost(loop, 4), draft_cost(loop)
    for old, new in zip(before, after, strict=True):
        assert 0 < old.chosen < new.chosen and old.chosen < old.moved
        assert new.moved - old.moved == new.chosen - old.chosen


def test_a_step_holds_one_model_and_updates_its_cache_in_place(loop, side):
    weights, cache = held(side, SIZES)
    for cost in (draft_cost(loop), verify_cost(loop, 1), verify_cost(loop, 4)):
        assert (cost.weights, cost.cache) == (weights, cache) and cost.aliased >= cache
    assert verify_cost(loop, 4).flops > 3 * verify_cost(loop, 1).flops


def test_a_drafter_that_reads_features_is_planned_with_a_verifier_that_keeps_them(side, loop):
    small = dataclasses.replace(CONFIG, reads_features=True)
    kept = side._replace(features=True)
    reading = loop_of(kept, side._replace(config=small), SIZES, rules.token_v3)
    assert held(kept, SIZES)[1] - held(side, SIZES)[1] == 2 * SIZES.batch * SIZES.slots * CONFIG.d_model
    assert verify_cost(reading, 4).cache == held(kept, SIZES)[1]
    fuse = 2 * CONFIG.d_model * CONFIG.d_model
    assert draft_cost(reading).flops - draft_cost(loop).flops >= 2 * SIZES.batch * fuse


def test_the_loop_is_planned_whole(loop, side):
    whole = whole_cost(loop)
    assert whole.state > 2 * held(side, SIZES)[1] and whole.aliased > 0.9 * whole.state
    assert set(loop.plan.passes) == {1, SIZES.k_max + 1}


def test_the_least_time_is_that_of_the_narrowest_place():
    chip = CHIPS["v5e"]
    cost = Cost(10, 1, 0, 0, 819 * 10**9, 0, 0.0, 1.0, {}, {})
    assert cost.seconds(chip) == pytest.approx(1.0)
    assert cost._replace(flops=394e12).seconds(chip) == pytest.approx(2.0)
    assert cost._replace(collectives={"all-reduce": (2, 200 * 10**9)}).seconds(chip) == pytest.approx(2.0)
