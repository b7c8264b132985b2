"""The loop around real (tiny, random) transformers: full attention, and windows shorter than the sequence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Case, Lab, any_controller, crowd, decode, idler, request, texts

from cascades import lookahead, rules
from cascades.decoding import Plan, compile_plan
from cascades.models.api import decoder
from cascades.models.config import DecoderConfig

VOCAB, SLOTS, K_MAX = 32, 40, 4


def config(**fields) -> DecoderConfig:
    shape = {
        "num_layers": 2, "d_model": 16, "d_ff": 32, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8,
    }  # fmt: skip
    return DecoderConfig(vocab_size=VOCAB, context_length=SLOTS, **(shape | fields))


CONFIGS = {
    "full": config(num_layers=1, qkv_bias=True),
    "windows": config(window=5, local_layers=(True, False), qk_norm=True),
}
CONTROLLERS = (lookahead.fixed(4), lookahead.heuristic(2), lookahead.verifier_guided(patience=2), idler(20))


@functools.cache
def weights(name, seed):
    """Random weights, sharpened so that distributions are far from flat and two seeds disagree."""
    params = decoder(CONFIGS[name]).init(jax.random.key(seed))
    params["final_norm"]["scale"] = params["final_norm"]["scale"] * 4
    return params


@functools.cache
def lab(name, coupling, bonus) -> Lab:
    """Two models of one shape: the same program serves a pair and a model that drafts for itself."""
    model = decoder(CONFIGS[name])
    plan = Plan(
        model, model, (rules.lossless,), any_controller(CONTROLLERS), K_MAX, VOCAB, coupling=coupling, bonus=bonus
    )
    return Lab(compile_plan(plan), weights(name, 0), weights(name, 1))


def twins(*which) -> Lab:
    return lab(*which)._replace(drafter=lab(*which).verifier)


def cases(temperature=None):
    """Eight rows, two for each controller, to the end of the context and nearly."""
    base = crowd(rule="lossless", temperature=temperature)[:8]
    return [case._replace(new=SLOTS - len(case.prompt) - (0, 0, 3, 8, 1)[i % 5]) for i, case in enumerate(base)]


@functools.cache
def scores(name):
    api, params = decoder(CONFIGS[name]), lab(name, "maximal", "verifier").verifier
    empty = api.init_cache(1, SLOTS)
    return jax.jit(lambda tokens: api.extend(params, tokens, empty)[0].logits[0])


def naive(name, case: Case):
    """Greedy decoding that reads the whole text anew for each token."""
    text = list(case.prompt)
    while len(text) < len(case.prompt) + case.new:
        padded = jnp.asarray([text + [0] * (SLOTS - len(text))], jnp.int32)
        text.append(int(np.argmax(scores(name)(padded)[len(text) - 1])))
    return tuple(text)


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_lossless_is_the_verifier_alone(name):
    expected = [naive(name, case) for case in cases(0.0)]
    assert len({text[-8:] for text in expected}) > 1
    for forced in (0, 1, 2, 3, 4, -1):
        state = decode(lab(name, "maximal", "verifier"), request(cases(0.0)), SLOTS, forced)
        assert texts(state) == expected, forced
        assert forced <= 0 or int(np.sum(state.info.rejected)) > 0


@pytest.mark.parametrize(
    "which", [("full", "maximal", "verifier"), ("windows", "maximal", "verifier"), ("full", "gumbel", "target")]
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_self_draft_is_accepted_whole(which, temperature):
    batch = cases(temperature)
    for k in (K_MAX, 1):
        state = decode(twins(*which), request(batch), SLOTS, k)
        info = jax.tree.map(np.asarray, state.info)
        np.testing.assert_array_equal(info.accepted, info.drafted)
        np.testing.assert_array_equal(info.rounds, [-(-case.new // (k + 1)) for case in batch])
    # The controllers' drafts too, with a drafter that was left far behind and catches up.
    state = decode(twins(*which), request(batch), SLOTS)
    np.testing.assert_array_equal(state.info.accepted, state.info.drafted)
    assert int(jnp.min(state.info.drafted)) > 0


def test_gumbel_samples_do_not_depend_on_draft_lengths():
    pair, batch = lab("full", "gumbel", "target"), cases(1.0)
    expected = texts(decode(pair, request(batch), SLOTS, 0))
    for forced in (1, 4, -1):
        state = decode(pair, request(batch), SLOTS, forced)
        assert texts(state) == expected
        assert forced < 0 or int(np.sum(state.info.rejected)) > 0
