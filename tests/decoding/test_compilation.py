"""One compilation serves every alpha, temperature, cut, seed, limit, number of rounds and draft length; buffers are
donated."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import begin, crowd, decode, lab, request
from reference import Settings

from cascades import lookahead, models, rules
from cascades.decoding import FREE, Plan, advance_sequential, compile_plan
from cascades.decoding.round import advance
from cascades.lookahead import given_costs


def test_sweeps_do_not_compile():
    pair = lab(bonus="verifier")
    decode(pair, request(crowd()))
    before = [program._cache_size() for program in (pair.programs.start, pair.programs.run)]
    assert min(before) >= 1
    for i in range(4):
        settings = Settings(0.3 * i, top_k=i, top_p=1 - 0.2 * i, min_p=0.05 * i)
        cases = [
            case._replace(alpha=0.2 * i, settings=settings, new=case.new - i, seed=case.seed + 100 * i)
            for case in crowd()
        ]
        decode(
            pair,
            request(cases),
            forced=i - 1,
            rounds=5 + i,
            costs=given_costs(4, 0.1 * i, (1.0, 2.0, 2.0, 2.0, 3.0 + i)),
        )
        state = begin(pair, request(cases), costs=given_costs(4, 0.5))
        stop = jnp.asarray(np.arange(len(cases)) % (i + 2) == 0)
        state = pair.programs.run(pair.verifier, pair.drafter, state, stop, jnp.int32(i), jnp.int32(FREE))
        pair.programs.run(pair.verifier, pair.drafter, state, ~stop, jnp.int32(1), jnp.int32(2))
    assert [program._cache_size() for program in (pair.programs.start, pair.programs.run)] == before


def test_other_weights_do_not_compile():
    pair = lab(bonus="verifier")
    decode(pair, request(crowd()))
    before = pair.programs.run._cache_size()
    decode(pair._replace(drafter={"table": pair.drafter["table"] + 1}), request(crowd()))
    assert pair.programs.run._cache_size() == before


def test_state_is_donated():
    pair = lab(bonus="verifier")
    state = begin(pair, request(crowd()))
    arguments = (jnp.zeros((len(crowd()),), bool), jnp.int32(1), jnp.int32(FREE))
    large = (state.verifier_cache, state.drafter_cache, state.draft_logits, state.tokens)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(large))
    analysis = pair.programs.run.lower(pair.verifier, pair.drafter, state, *arguments).compile().memory_analysis()
    assert analysis.alias_size_in_bytes >= size
    pair.programs.run(pair.verifier, pair.drafter, state, *arguments)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(large))


@pytest.mark.parametrize("step", [advance, advance_sequential])
def test_no_round_copies_a_cache(step):
    # A `lax.cond` or `lax.switch` around a pass would copy every buffer on the way in and on the way out.
    shape = {"vocab_size": 32, "d_model": 16, "d_ff": 24, "num_heads": 2, "num_kv_heads": 1, "context_length": 64}
    verifier = models.decoder(models.DecoderConfig(**shape, num_layers=2, head_dim=8))
    drafter = models.decoder(models.DecoderConfig(**shape, num_layers=1, head_dim=6))
    plan = Plan(verifier, drafter, rules.chow, lookahead.verifier_guided(), 4, 32)
    programs = compile_plan(plan, step)
    weights = verifier.init(jax.random.key(0)), drafter.init(jax.random.key(1))
    batch = request(crowd()[:3])
    state = jax.eval_shape(
        partial(programs.start, slots=64), *weights, batch, plan.lookahead.init(3, given_costs(4, 0.2))
    )
    number = jax.ShapeDtypeStruct((), jnp.int32)
    stop = jax.ShapeDtypeStruct((3,), jnp.bool_)
    text = programs.run.lower(*weights, state, stop, number, number).compile().as_text()
    for heads in (8, 6):
        buffer = rf"f32\[3,1,64,{heads}\]"
        assert re.search(buffer, text)
        assert not re.findall(rf"= {buffer}\S* copy\(", text)
