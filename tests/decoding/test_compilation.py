"""One compilation serves every alpha, temperature, cut, seed, limit, number of rounds and draft length; buffers are
donated."""

import dataclasses
import functools
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
from cascades.decoding.lookup import look_up
from cascades.decoding.plan import fine_widths
from cascades.decoding.round import advance
from cascades.lookahead import given_costs
from cascades.testing import table_model


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


SHAPE = {"vocab_size": 32, "d_model": 16, "d_ff": 24, "num_heads": 2, "num_kv_heads": 1, "context_length": 64}
VERIFIER = models.DecoderConfig(**SHAPE, num_layers=2, head_dim=8)
DRAFTER = models.DecoderConfig(**SHAPE, num_layers=1, head_dim=6)
EAGLE = models.DecoderConfig(**SHAPE, num_layers=1, head_dim=6, reads_features=True)
K_MAX, ROWS = 4, 3


def lowered(plan: Plan, step=advance):
    """The loop of a plan, for a few rows; nothing is compiled."""
    programs = compile_plan(plan, step)
    small = plan.drafter.init(jax.random.key(1)) if plan.drafter else {}
    weights = plan.verifier.init(jax.random.key(0)), small
    first = plan.lookahead.init(ROWS, given_costs(plan.k_max, 0.2))
    state = jax.eval_shape(partial(programs.start, slots=64), *weights, request(crowd()[:ROWS]), first)
    number, stop = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((ROWS,), jnp.bool_)
    return programs.run.lower(*weights, state, stop, number, number)


@pytest.mark.parametrize("step", [advance, advance_sequential])
def test_no_round_copies_a_cache(step):
    # A `lax.cond` or `lax.switch` around a pass would copy every buffer on the way in and on the way out.
    plan = Plan(
        models.decoder(VERIFIER), models.decoder(DRAFTER), (rules.chow,), lookahead.verifier_guided(), K_MAX, 32
    )
    text = lowered(plan, step).compile().as_text()
    for heads in (8, 6):
        buffer = rf"f32\[3,1,64,{heads}\]"
        assert re.search(buffer, text)
        assert not re.findall(rf"= {buffer}\S* copy\(", text)


def products(config: models.DecoderConfig) -> int:
    """Of one pass: seven in the weights of a layer and two in its attention, the head, and what a reader fuses."""
    return 9 * config.num_layers + 1 + config.reads_features


@pytest.mark.parametrize("widths", [(), (1, 3, 5), fine_widths(K_MAX)])
@pytest.mark.parametrize("name", ["plain", "reader", "ngram", "both", "alone"])
def test_a_program_holds_a_verifier_for_each_width_and_two_drafters(name, widths):
    verifier = models.decoder(VERIFIER, features=name in ("reader", "both"))
    config = {"plain": DRAFTER, "reader": EAGLE, "both": EAGLE}.get(name)
    drafter = models.decoder(config) if config else None
    lookup = look_up(3, alone=name == "ngram") if name in ("ngram", "both") else None
    plan = Plan(
        *(verifier, drafter, (rules.token_v3,), lookahead.verifier_guided(), K_MAX if drafter or lookup else 0, 32),
        **{"bonus": "target", "lookup": lookup, "widths": widths},
    )
    passes = len(widths or (1, K_MAX + 1)) if drafter or lookup else 1
    expected = passes * products(VERIFIER) + (2 * products(config) if config else 0)
    assert inlined(lowered(plan).as_text(), "stablehlo.dot_general") == expected


def inlined(text: str, operation: str) -> int:
    """How often an operation stands in a program once every function is put in the place of its calls."""
    functions = {found[1]: found[0] for found in re.finditer(r"func\.func \w+ @(\w+)\(.*?\n  }\n", text, re.DOTALL)}

    @functools.cache
    def within(name: str) -> int:
        body = functions[name]
        return body.count(operation) + sum(within(other) for other in re.findall(r"call @(\w+)\(", body))

    return within("main")


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_the_layers_of_a_model_share_their_text(kind):
    def products(layers):
        if kind == "decoder":
            model = models.decoder(dataclasses.replace(VERIFIER, num_layers=layers))
        else:
            shape = {"vocab_size": 32, "d_model": 16, "d_ff": 24, "num_heads": 2, "head_dim": 8, "context_length": 64}
            model = models.encoder_decoder(models.T5Config(**shape, num_layers=layers, num_decoder_layers=layers))
        plan = Plan(model, model, (rules.token_v3,), lookahead.fixed(2), K_MAX, 32)
        text = lowered(plan).as_text()
        return text.count("stablehlo.dot_general"), inlined(text, "stablehlo.dot_general")

    (few, run_few), (many, run_many) = products(2), products(5)
    assert few == many and run_many > 2 * run_few


@pytest.mark.parametrize("coupling", ["maximal", "gumbel"])
@pytest.mark.parametrize("rule", [rules.lossless, rules.token_v3])
def test_a_width_more_costs_a_pass_and_its_verdict_and_a_token_is_chosen_once(coupling, rule):
    """What draws a token stands twice in a program of two widths: where one is drafted, and behind a block."""
    model = table_model(8)

    def noises(widths):
        plan = Plan(model, model, (rule,), lookahead.fixed(2), K_MAX, 8, coupling=coupling, widths=widths)
        return len(re.findall(r"call @_gumbel", lowered(plan).as_text()))

    assert noises(()) == (2 if coupling == "maximal" else 4)  # the gumbel coupling draws to judge, too
    assert noises((1, 3, 5)) == (2 if coupling == "maximal" else 6)


def test_the_widths_of_a_plan():
    assert [fine_widths(k) for k in (0, 1, 2, 3, 4)] == [(1,), (1, 2), (1, 3), (1, 3, 4), (1, 3, 5)]
    assert [fine_widths(k) for k in (8, 9)] == [(1, 3, 5, 9), (1, 3, 5, 9, 10)]
    plan = Plan(table_model(8), table_model(8), (rules.lossless,), lookahead.fixed(2), K_MAX, 8)
    assert plan.passes == (1, 5) and plan._replace(widths=(1, 2, 5)).passes == (1, 2, 5)
    assert plan._replace(drafter=None).passes == (1,) and plan._replace(k_max=0).passes == (1,)
    with pytest.raises(AssertionError):
        _ = plan._replace(widths=(1, 4)).passes
