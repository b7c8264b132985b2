"""Models that say NaN: a drafter's never changes lossless text, a verifier's ends the row, and no token comes of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import EOS, SLOTS, Case, Lab, decode, greedy_text, lab, request, texts
from reference import Settings

from cascades import lookahead, models, rules
from cascades.decoding import Finish, Plan, advance_sequential, compile_plan
from cascades.testing import table_model

K_MAX, BROKEN = 4, 2  # the token behind which a broken model says what it should not
LAWS = [("maximal", "verifier"), ("gumbel", "target"), ("maximal", "target")]


@functools.cache
def pair_of(coupling="maximal", bonus="verifier", alone=False, rule=rules.lossless, controller=None) -> Lab:
    """A pair of table models, of which the drafter is a blur of the verifier, or the verifier alone."""
    model = table_model(6)
    controller = controller or lookahead.fixed(3)
    plan = Plan(model, None if alone else model, (rule,), controller, K_MAX, 6, (EOS,), coupling, bonus)
    return lab()._replace(programs=compile_plan(plan))


def broken(params, value, only: int | None = None):
    """A table model that gives no distribution behind the token `BROKEN`: of one token, or of all."""
    rows = np.arange(params["table"].shape[0]) % params["table"].shape[1] == BROKEN
    places = np.zeros(params["table"].shape, bool)
    places[rows] = True
    if only is not None:
        places[:, np.arange(places.shape[1]) != only] = False
    return {"table": jnp.where(jnp.asarray(places), value, params["table"])}


BREAKS = {
    "nan": lambda params: broken(params, jnp.nan),
    "one_nan": lambda params: broken(params, jnp.nan, only=3),
    "infinity": lambda params: broken(params, jnp.inf, only=3),
    "nothing": lambda params: broken(params, -jnp.inf),
}


def cases(settings=Settings(0.0)):  # noqa: B008
    prompts = ((1,), (BROKEN,), (3, 1), (1, 0, 4), (4,), (0, 3))
    return [Case("lossless", settings, prompt, new=30 - i, seed=i) for i, prompt in enumerate(prompts)]


def finite(tree):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating))


# The drafter.


@pytest.mark.parametrize("law", LAWS, ids="-".join)
@pytest.mark.parametrize("what", BREAKS)
def test_a_drafters_nan_does_not_change_the_text(law, what):
    pair = pair_of(*law)
    expected = [greedy_text(pair, case) for case in cases()]
    met = 0
    for forced in (0, 2, K_MAX, -1):
        state = decode(pair._replace(drafter=BREAKS[what](pair.drafter)), request(cases()), forced=forced)
        assert texts(state) == expected, forced
        np.testing.assert_array_equal(state.info.drafter_nan, np.asarray(state.silent).astype(int))
        assert finite((state.info, state.lookahead, state.draft_logits))
        met += int(np.sum(state.silent)) if forced > 0 else 0
    assert met > 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "controller", [lookahead.heuristic(2), lookahead.verifier_guided(patience=2), lookahead.drafter_confidence(0.3)]
)
def test_no_controller_minds(controller):
    pair = pair_of(controller=controller)
    state = decode(pair._replace(drafter=broken(pair.drafter, jnp.nan)), request(cases()))
    assert texts(state) == [greedy_text(pair, case) for case in cases()]
    assert finite((state.info, state.lookahead, state.draft_logits)) and int(np.sum(state.silent)) > 0


def test_a_row_that_met_nan_drafts_no_more_and_the_others_do():
    pair = pair_of()
    pair = pair._replace(drafter=broken(pair.drafter, jnp.nan))
    state = decode(pair, request(cases()), forced=K_MAX)
    info = jax.tree.map(np.asarray, state.info)
    assert info.drafter_nan[1] == 1 and info.drafter_steps[1] == 1 and info.drafted[1] == 0  # its prompt ends so
    sound = request([case._replace(prompt=(1,), new=2) for case in cases()])
    assert int(np.sum(decode(pair, sound, forced=1).info.drafter_nan)) <= len(cases())
    whole = decode(pair_of(), request(cases()), forced=K_MAX)
    spared = info.drafter_nan == 0
    np.testing.assert_array_equal(info.drafted[spared], np.asarray(whole.info.drafted)[spared])


@pytest.mark.slow
@pytest.mark.parametrize("settings", [Settings(1.0), Settings(0.6, top_p=0.9)], ids=str)
def test_a_seeded_sample_is_the_same_with_a_broken_drafter(settings):
    pair = pair_of("gumbel")
    expected = texts(decode(pair_of("gumbel", alone=True), request(cases(settings))))
    for forced in (1, K_MAX, -1):
        found = decode(pair._replace(drafter=broken(pair.drafter, jnp.nan)), request(cases(settings)), forced=forced)
        assert texts(found) == expected


def test_a_token_cascade_goes_on_with_the_verifier():
    model = table_model(6)
    programs = compile_plan(Plan(model, model, (rules.chow,), lookahead.fixed(0), 1, 6, (EOS,)), advance_sequential)
    pair = lab()._replace(programs=programs, drafter={"table": jnp.full((36, 6), jnp.nan)})
    asked = request(cases())._replace(alpha=jnp.ones((len(cases()),), jnp.float32))  # never deferred otherwise
    state = decode(pair, asked)
    assert texts(state) == [greedy_text(pair, case) for case in cases()]
    np.testing.assert_array_equal(state.info.drafter_nan, 1)
    np.testing.assert_array_equal(state.info.drafter_steps, 1)
    state = decode(pair._replace(drafter=lab().drafter, verifier=broken(lab().verifier, jnp.nan)), asked)
    assert (np.asarray(state.finish) == Finish.LENGTH).all()  # a verifier that is never asked


# The verifier.


def cut(pair, case):
    """The text up to and including the first token behind which the broken verifier gives no distribution."""
    text = greedy_text(pair, case)
    ends = [n for n in range(len(case.prompt), len(text)) if text[n - 1] == BROKEN]
    return text[: ends[0]] if ends else text


@pytest.mark.parametrize("law", LAWS, ids="-".join)
@pytest.mark.parametrize("what", BREAKS)
def test_a_verifiers_nan_ends_the_row_before_it(law, what):
    pair = pair_of(*law)
    expected = [cut(pair, case) for case in cases()]
    ended = np.asarray([text != greedy_text(pair, case) for text, case in zip(expected, cases(), strict=True)])
    assert ended.any() and not ended.all() and len(expected[1]) == 1
    for forced in (0, 1, K_MAX, -1):
        state = decode(pair._replace(verifier=BREAKS[what](pair.verifier)), request(cases()), forced=forced)
        assert texts(state) == expected, forced
        np.testing.assert_array_equal(state.finish, np.where(ended, int(Finish.ERROR), int(Finish.LENGTH)))
        assert finite((state.info, state.lookahead))
        info, new = state.info, np.asarray(state.length) - [len(case.prompt) for case in cases()]
        np.testing.assert_array_equal(np.asarray(info.accepted) + np.asarray(info.rounds) - ended, new)


def test_a_verifier_alone_and_one_that_is_nan_throughout():
    alone = pair_of(alone=True)
    state = decode(alone._replace(verifier=broken(alone.verifier, jnp.nan)), request(cases()))
    assert texts(state) == [cut(lab(), case) for case in cases()]
    for pair in (alone, pair_of("gumbel")):
        state = decode(pair._replace(verifier={"table": jnp.full((36, 6), jnp.nan)}), request(cases()))
        assert texts(state) == [case.prompt for case in cases()]
        assert (np.asarray(state.finish) == Finish.ERROR).all()


@pytest.mark.slow
def test_a_rule_that_looks_at_the_drafter_only_meets_the_verifiers_nan_too():
    pair = pair_of(rule=rules.chow)
    batch = request(cases())._replace(alpha=jnp.ones((len(cases()),), jnp.float32))
    state = decode(pair._replace(verifier={"table": jnp.full((36, 6), jnp.nan)}), batch, forced=K_MAX)
    assert texts(state) == [case.prompt for case in cases()]


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_a_sampled_row_ends_as_well(temperature):
    pair = pair_of()
    state = decode(
        pair._replace(verifier=broken(pair.verifier, jnp.nan)), request(cases(Settings(temperature))), forced=K_MAX
    )
    for case, text, finish in zip(cases(), texts(state), np.asarray(state.finish), strict=True):
        met = BROKEN in (case.prompt[-1], *text[len(case.prompt) :])
        assert finish == (Finish.ERROR if met else Finish.LENGTH)
        assert not met or text[-1] == BROKEN and BROKEN not in text[len(case.prompt) : -1]


# Caches: a weight of 0 times NaN is NaN.

SHAPE = {"vocab_size": 32, "d_model": 16, "d_ff": 32, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8}
CONFIG = models.DecoderConfig(
    **SHAPE, context_length=SLOTS, num_layers=2, tied_head=False, window=5, local_layers=(True, False)
)


@functools.cache
def transformer(cache: str | None) -> tuple[Lab, Lab]:
    """A decoder with a drafter that always drafts token 7, which the verifier cannot read; and the decoder alone."""
    model = models.decoder(CONFIG, cache_dtype=jnp.int8 if cache else None)
    params = model.init(jax.random.key(0))
    params["final_norm"]["scale"] *= 4
    params["embed"]["embedding"] = params["embed"]["embedding"].at[jnp.asarray([0, 7])].set(jnp.nan)
    params["head"]["kernel"] = params["head"]["kernel"].at[jnp.asarray([0, 7])].set(0.0)  # nor does it say them
    stubborn = {"table": jnp.zeros((32 * 32, 32), jnp.float32).at[:, 7].set(50.0)}
    plans = (
        Plan(model, drafter, (rules.lossless,), lookahead.fixed(3), K_MAX, 32) for drafter in (table_model(32), None)
    )
    first, second = (Lab(compile_plan(plan), params, stubborn) for plan in plans)
    return first, second


def readable():
    random = np.random.default_rng(1)
    prompts = [tuple(random.integers(8, 32, n).tolist()) for n in (1, 4, 9, 17)]
    return [Case(prompt=prompt, new=12 + i, settings=Settings(0.0)) for i, prompt in enumerate(prompts)]


@pytest.mark.parametrize("cache", [None, "int8"])
def test_a_draft_that_the_verifier_cannot_read_leaves_nothing_behind(cache):
    pair, alone = transformer(cache)
    expected = decode(alone, request(readable()))
    assert (np.asarray(expected.finish) == Finish.LENGTH).all()  # padding, of token 0, has left nothing either
    for forced in (1, K_MAX):
        state = decode(pair, request(readable()), forced=forced)
        assert texts(state) == texts(expected)
        assert int(np.sum(state.info.rejected)) > 20


@pytest.mark.parametrize("cache", [None, "int8"])
def test_a_prompt_that_the_verifier_cannot_read_ends_at_once(cache):
    pair, _ = transformer(cache)
    batch = [case._replace(prompt=(*case.prompt[:1], 7, *case.prompt[1:], 9)) for case in readable()]
    state = decode(pair, request([*batch[:2], *readable()[2:]]))
    np.testing.assert_array_equal(state.finish, [Finish.ERROR] * 2 + [Finish.LENGTH] * 2)
    assert texts(state)[:2] == [case.prompt for case in batch[:2]]
    assert texts(state)[2:] == texts(decode(pair, request(readable())))[2:]


def test_a_reader_of_features_that_says_nan():
    large = models.decoder(CONFIG, features=True)
    small = models.decoder(models.DecoderConfig(**SHAPE, context_length=SLOTS, num_layers=1, reads_features=True))
    params = large.init(jax.random.key(0))
    params["final_norm"]["scale"] *= 4
    own = small.init(jax.random.key(1))
    own["feature_norm"]["scale"] *= jnp.nan
    pair = Lab(compile_plan(Plan(large, small, (rules.lossless,), lookahead.fixed(3), K_MAX, 32)), params, own)
    state = decode(pair, request(readable()))
    np.testing.assert_array_equal(state.info.drafter_nan, 1)
    alone = Lab(compile_plan(Plan(large, None, (rules.lossless,), lookahead.fixed(0), 0, 32)), params, {})
    assert texts(state) == texts(decode(alone, request(readable())))
