"""The loop around encoder–decoders: it cannot tell them from decoders."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Case, Lab, any_controller, come_and_go, decode, idler, request, texts

from cascades import lookahead, models, rules
from cascades.decoding import Plan, compile_plan

VOCAB, SLOTS, K_MAX = 32, 40, 4
SHAPE = {
    "vocab_size": VOCAB, "d_model": 16, "d_ff": 32, "num_heads": 2, "head_dim": 8, "context_length": SLOTS,
    "buckets": 8, "max_distance": 16,
}  # fmt: skip
VERIFIER = models.T5Config(**SHAPE, num_layers=2, num_decoder_layers=2)
DRAFTER = models.T5Config(
    **SHAPE, num_layers=1, num_decoder_layers=1, gated=False, tied_head=True, scaled_head=True, start=0
)
CONTROLLERS = (lookahead.fixed(4), lookahead.heuristic(2), lookahead.verifier_guided(patience=2), idler(5))


@functools.cache
def weights(config, seed):
    """Random weights, sharpened so that distributions are far from flat and the two models disagree."""
    params = models.build(config).init(jax.random.key(seed))
    return params | {"decoder_norm": {"scale": params["decoder_norm"]["scale"] * 4}}


@functools.cache
def lab(drafter, coupling="maximal", bonus="verifier") -> Lab:
    pair = models.build(VERIFIER), models.build(drafter)
    controller = any_controller(CONTROLLERS)
    plan = Plan(*pair, (rules.lossless,), controller, K_MAX, VOCAB, coupling=coupling, bonus=bonus)
    return Lab(compile_plan(plan), weights(VERIFIER, 0), weights(drafter, 0 if drafter == VERIFIER else 1))


def cases(temperature):
    """Inputs of 1 to 13 tokens with the start token behind them, to the end of the context and nearly."""
    random = np.random.default_rng(0)
    found = []
    for i, length in enumerate((3, 1, 13, 8, 5, 2, 9, 7)):
        prompt = (*random.integers(1, VOCAB, length).tolist(), 0)
        new = SLOTS - len(prompt) - (0, 0, 3, 8)[i % 4]
        found.append(Case(prompt=prompt, new=new, seed=i, settings=Case().settings._replace(temperature=temperature)))
    return found


@functools.cache
def passes():
    model = models.build(VERIFIER)
    return model, jax.jit(model.prefill), jax.jit(model.extend)


def naive(case: Case):
    """Greedy decoding that encodes the input and decodes the whole output anew for each token."""
    model, prefill, extend = passes()
    given, text = list(case.prompt[:-1]), [0]
    padded = jnp.asarray([given + [0] * (SLOTS - len(given))], jnp.int32)
    while len(text) < 1 + case.new:
        cache = prefill(weights(VERIFIER, 0), padded, jnp.asarray([len(given)], jnp.int32), model.init_cache(1, SLOTS))
        output, _ = extend(weights(VERIFIER, 0), jnp.asarray([text + [0] * (SLOTS - len(text))], jnp.int32), cache)
        text.append(int(np.argmax(output.logits[0, len(text) - 1])))
    return (*given, *text)


def test_greedy_lossless_is_the_verifier_alone():
    expected = [naive(case) for case in cases(0.0)]
    assert len({text[-8:] for text in expected}) > 1
    for forced in (0, 1, 4, -1):
        state = decode(lab(DRAFTER), request(cases(0.0)), SLOTS, forced)
        assert texts(state) == expected, forced
        assert forced <= 0 or int(np.sum(state.info.rejected)) > 0


@pytest.mark.parametrize(("coupling", "temperature"), [("maximal", 0.0), ("gumbel", 1.0)])
def test_rows_may_come_and_go(coupling, temperature):
    pair = lab(DRAFTER, coupling)
    twice = [case._replace(seed=at) for at, case in enumerate(cases(temperature) + cases(temperature))]
    assert come_and_go(pair, twice, 8, 0, SLOTS) == texts(decode(pair, request(twice), SLOTS, 0))


@pytest.mark.parametrize("law", [("maximal", "verifier"), ("gumbel", "target")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_self_draft_is_accepted_whole(law, temperature):
    batch = cases(temperature)
    for k in (K_MAX, 1):
        info = jax.tree.map(np.asarray, decode(lab(VERIFIER, *law), request(batch), SLOTS, k).info)
        np.testing.assert_array_equal(info.accepted, info.drafted)
        np.testing.assert_array_equal(info.rounds, [-(-case.new // (k + 1)) for case in batch])
    # With a drafter that was left behind too, from the first round on: it has encoded the input all the same.
    state = decode(lab(VERIFIER, *law), request(batch), SLOTS)
    np.testing.assert_array_equal(state.info.accepted, state.info.drafted)
    assert int(jnp.min(state.info.drafted)) > 0


def test_a_row_does_not_depend_on_its_batch():
    batch = cases(1.0)
    together = texts(decode(lab(DRAFTER), request(batch), SLOTS, 3))
    for row in (0, 2, 5):
        assert texts(decode(lab(DRAFTER), request([batch[row]] * 8), SLOTS, 3))[0] == together[row]


def test_gumbel_samples_do_not_depend_on_draft_lengths():
    pair, batch = lab(DRAFTER, "gumbel", "target"), cases(1.0)
    expected = texts(decode(pair, request(batch), SLOTS, 0))
    for forced in (1, 4, -1):
        state = decode(pair, request(batch), SLOTS, forced)
        assert texts(state) == expected
        assert forced < 0 or int(np.sum(state.info.rejected)) > 0
