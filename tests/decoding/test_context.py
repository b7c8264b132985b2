"""A drafter with a shorter context than its verifier: behind it nothing is drafted, and the text is what it was."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import EOS, NAMES, SLOTS, Case, Lab, any_rule, begin, decode, greedy_text, idler, lab, request, texts
from reference import Settings

from cascades import lookahead, models, rules
from cascades.decoding import Plan, Request, advance_sequential, compile_plan
from cascades.decoding.lookup import look_up
from cascades.distributions import Purpose, gumbel, stream
from cascades.testing import table_model
from cascades.typing import Model

CONTEXT, K_MAX = 20, 4
LENGTHS = (1, 3, 12, 18, 19, 20, 21, 33)  # of prompts: before, around and behind the drafter's context
LAWS = [("maximal", "verifier"), ("gumbel", "target"), ("maximal", "target"), ("gumbel", "verifier")]


@functools.cache
def short(coupling="maximal", bonus="verifier", controller=None, rule=rules.lossless, context=CONTEXT) -> Lab:
    """A pair of table models with a drafter that holds 20 tokens; with a context of 0, the verifier alone."""
    drafter = table_model(6, context_length=context) if context else None
    controller = controller or lookahead.fixed(3)
    plan = Plan(table_model(6), drafter, (rule,), controller, K_MAX, 6, (EOS,), coupling, bonus)
    return lab()._replace(programs=compile_plan(plan))


def cases(settings=Settings(0.0), names=("lossless",), vocabulary=5):  # noqa: B008
    random = np.random.default_rng(0)
    prompts = [tuple(random.integers(0, vocabulary, length).tolist()) for length in LENGTHS]
    return [
        Case(names[i % len(names)], settings, prompt, new=SLOTS - len(prompt) - i % 3, seed=i)
        for i, prompt in enumerate(prompts)
    ]


@pytest.mark.parametrize("law", LAWS, ids="-".join)
def test_greedy_lossless_text_is_the_verifiers(law):
    expected = [greedy_text(lab(), case) for case in cases()]
    for forced in (0, 1, K_MAX, -1):
        state = decode(short(*law), request(cases()), forced=forced)
        assert texts(state) == expected, forced
        info = jax.tree.map(np.asarray, state.info)
        drafts = np.asarray(LENGTHS) < CONTEXT
        assert (info.drafter_steps[~drafts] == 0).all() and (info.drafted[~drafts] == 0).all()
        assert forced == 0 or (info.drafted[drafts] > 0).all()
        assert state.drafter_cache.tokens.shape[1] == CONTEXT


def test_no_position_behind_the_context_is_drafted_or_scored():
    for forced in (1, K_MAX):
        prompts = [case._replace(new=30) for case in cases() if len(case.prompt) < CONTEXT]
        info = decode(short("maximal", "target"), request(prompts), forced=forced).info
        # Of each position of its context the drafter was asked once a round at most, and of none behind it.
        room = np.asarray([CONTEXT - len(case.prompt) for case in prompts])
        drafted, steps = np.asarray(info.drafted), np.asarray(info.drafter_steps)
        assert (np.asarray(info.accepted) <= room).all()
        assert (steps <= drafted + np.asarray(info.rounds)).all()
        last = decode(short("maximal", "target"), request(prompts), forced=forced, rounds=1)
        np.testing.assert_array_equal(last.info.drafted, np.minimum(forced, room))
        np.testing.assert_array_equal(last.info.drafter_steps, np.minimum(forced + 1, room))


@pytest.mark.parametrize("settings", [Settings(1.0), Settings(0.7, top_k=3, min_p=0.05)], ids=str)
def test_a_seeded_lossless_sample_is_the_one_without_a_drafter(settings):
    batch = request(cases(settings))
    expected = texts(decode(short("gumbel", context=0), batch))
    for law in (("gumbel", "verifier"), ("gumbel", "target")):
        for forced in (0, 2, K_MAX):
            assert texts(decode(short(*law), batch, forced=forced)) == expected, (law, forced)


def test_every_rule_is_the_verifiers_own_behind_the_context():
    # With the gumbel coupling the text is argmax(log pi + g), whatever the draft lengths: pi = p where there is no q.
    batch = cases(Settings(1.0), NAMES[1:])
    pair = short("gumbel", "target", rule=any_rule)
    expected = []
    for case in batch:
        pi, _, p = case.tables(pair.q_table, pair.p_table)
        places = jnp.arange(SLOTS, dtype=jnp.int32)[None]
        noise = np.asarray(gumbel(stream(jax.random.key(case.seed)[None], places, Purpose.TOKEN), 6)[0], np.float64)
        text = list(case.prompt)
        with np.errstate(divide="ignore"):
            while len(text) < len(case.prompt) + case.new and EOS not in text:
                law = (pi if len(text) < CONTEXT else p)[(text[-2] if len(text) > 1 else 0) * 6 + text[-1]]
                text.append(int(np.argmax(np.log(law) + noise[len(text)])))
        expected.append(tuple(text))
    for forced in (0, 1, K_MAX, -1):
        assert texts(decode(pair, request(batch), forced=forced)) == expected, forced


@pytest.mark.slow
@pytest.mark.parametrize(
    "controller", [lookahead.heuristic(2), lookahead.verifier_guided(patience=2), idler(7)], ids=lambda c: c.name
)
def test_no_controller_minds(controller):
    state = decode(short("maximal", "verifier", controller), request(cases()))
    assert texts(state) == [greedy_text(lab(), case) for case in cases()]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.lookahead))


def test_a_row_that_stopped_does_not_hold_the_others_up():
    # The row with 19 tokens stops at once; its drafter's cache stays where it is while the others' go on.
    pair, batch = short(), [case for case in cases() if len(case.prompt) in (1, 19, 33)]
    state = begin(pair, request(batch))
    stop = jnp.zeros((3,), bool)
    for _ in range(8):
        state = pair.programs.run(pair.verifier, pair.drafter, state, stop, jnp.int32(1), jnp.int32(2))
        held = np.asarray(state.drafter_cache.length)
        assert (held <= CONTEXT).all()
    assert held[0] > held[1] - 18 and int(state.info.drafted[0]) > 4


# Models of every kind; of each the verifier holds twice what its drafter does.

SIZES = {"vocab_size": 32, "d_model": 16, "d_ff": 32, "num_heads": 2, "head_dim": 8}
WIDE, NARROW = {**SIZES, "num_kv_heads": 1, "context_length": SLOTS}, {**SIZES, "num_kv_heads": 1}
NARROW["context_length"] = CONTEXT
LARGE = models.DecoderConfig(**WIDE, num_layers=2, window=5, local_layers=(True, False))
SMALL = models.DecoderConfig(**NARROW, num_layers=1)
T5 = {**SIZES, "buckets": 8, "max_distance": 16, "num_layers": 1, "num_decoder_layers": 1}


@functools.cache
def kind(name: str) -> tuple[Model, Model | None, dict, dict]:
    """A verifier, a drafter, and their weights: sharp, and mostly of one mind."""
    first, second = jax.random.split(jax.random.key(1))
    if name == "t5":
        pair = [models.build(models.T5Config(**T5, context_length=n)) for n in (SLOTS, CONTEXT)]
        large = pair[0].init(first)
        large["decoder_norm"]["scale"] *= 4
        return *pair, large, jax.tree.map(lambda x: x * 1.05, large)
    large = models.decoder(LARGE, features=name == "features")
    weights = large.init(first)
    weights["final_norm"]["scale"] *= 4
    if name == "ngram":
        return large, None, weights, {}
    config = models.DecoderConfig(**NARROW, num_layers=1, reads_features=True) if name == "features" else SMALL
    small = models.decoder(config)
    own = small.init(second) | {key: weights[key] for key in ("embed", "head", "final_norm") if key in weights}
    return large, small, weights, own


@functools.cache
def of_kind(name: str, alone: bool = False, coupling="maximal") -> Lab:
    large, small, *weights = kind(name)
    plan = Plan(large, None if alone else small, (rules.lossless,), lookahead.fixed(3), K_MAX, 32, coupling=coupling)
    if name in ("ngram", "assisted") and not alone:
        plan = plan._replace(lookup=look_up(2, alone=name == "ngram"))
    return Lab(compile_plan(plan), *weights)


@pytest.mark.parametrize("name", ["decoder", "features", "ngram", "assisted", "t5"])
def test_models_of_every_kind(name):
    batch = cases(vocabulary=32)
    expected = texts(decode(of_kind(name, alone=True), request(batch)))
    state = decode(of_kind(name), request(batch))
    assert texts(state) == expected
    assert int(np.sum(state.info.drafted)) > 20
    by_model = np.asarray(state.info.drafted - state.info.found)
    np.testing.assert_array_equal(by_model[np.asarray(LENGTHS) >= CONTEXT], 0)
    looks_up = name in ("ngram", "assisted")  # and it needs no context of a drafter's
    assert (int(np.sum(np.asarray(state.info.found)[np.asarray(LENGTHS) >= CONTEXT])) > 0) == looks_up
    assert int(np.sum(state.info.drafter_nan)) == 0
    if name == "decoder":  # singles too, whose prefill is of their own width
        for case, text in zip(batch[3:], expected[3:], strict=True):
            assert texts(decode(of_kind(name), request([case]))) == [text]


@pytest.mark.slow
def test_a_token_cascade_keeps_to_both():
    # The host holds it to the drafter's context: within it, it is what it was.
    plan = Plan(*kind("decoder")[:2], (rules.chow,), lookahead.fixed(0), 1, 32)
    programs = compile_plan(plan, advance_sequential)
    batch = [case._replace(new=CONTEXT - len(case.prompt)) for case in cases(vocabulary=32) if len(case.prompt) < 18]
    asked: Request = request(batch)._replace(alpha=jnp.zeros((len(batch),), jnp.float32))
    state = decode(Lab(programs, *kind("decoder")[2:]), asked)
    assert texts(state) == texts(decode(of_kind("decoder", alone=True), request(batch)))
