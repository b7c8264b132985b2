"""Prompt look-up against a plain Python search, and the law of what it drafts through the loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers import EOS, Case, Lab, assert_follows, decode, greedy_text, lab, request, tally, texts
from reference import Settings

from cascades import lookahead, rules
from cascades.decoding import Origin, Plan, advance_sequential, compile_plan
from cascades.decoding.lookup import LookUp, find, look_up, mixed, next_token
from cascades.errors import UserError
from cascades.models import uniform
from cascades.testing import table_model

VOCAB, SLOTS, K = 7, 64, 6


def continuation(tokens: list[int], order: int, k: int = K) -> tuple[list[int], int]:
    """What follows the most recent earlier occurrence of the longest ending, and how long that ending is.

    The row goes on with what it finds: behind its end stand the tokens found so far.
    """
    for length in range(min(order, len(tokens) - 1), 0, -1):
        for end in range(len(tokens) - 1, length - 1, -1):  # exclusive end of the earlier occurrence
            if tokens[end - length : end] == tokens[-length:]:
                whole = list(tokens)
                for i in range(k):
                    whole.append(whole[end + i])
                return whole[len(tokens) :], length
    return [], 0


@functools.cache
def search(order):
    return jax.jit(functools.partial(find, LookUp(order), k=K))


def found(order, rows):
    """`find` of rows of any lengths, padded to one shape for every test with a token that none of them holds."""
    padded = np.full((len(rows), SLOTS), 99, np.int32)
    for row, tokens in zip(padded, rows, strict=True):
        row[: len(tokens)] = tokens
    out = search(order)(jnp.asarray(padded), jnp.asarray([len(tokens) for tokens in rows], jnp.int32))
    return np.asarray(out.tokens), np.asarray(out.matched)


def drafted(lookup, tokens, drafts=(), logits=None):
    """The distribution of the draft behind `drafts`, beside a model that says `logits`."""
    logits = jnp.zeros((1, VOCAB), jnp.float32) if logits is None else jnp.asarray(logits, jnp.float32)[None]
    row = jnp.asarray([tokens], jnp.int32)
    known = find(lookup, row, jnp.asarray([len(tokens)], jnp.int32), K)
    padded = jnp.asarray([[*drafts, *[tokens[-1]] * (K - len(drafts))]], jnp.int32)
    out, probs = mixed(lookup, known, padded, jnp.int32(len(drafts)), logits, jax.nn.softmax(logits))
    np.testing.assert_allclose(jax.nn.softmax(out), probs, atol=1e-6)
    return np.asarray(probs[0])


@pytest.mark.parametrize("order", [1, 2, 4])
def test_every_ending_is_found_as_a_plain_search_finds_it(order):
    tokens = np.random.default_rng(order).integers(0, 4, 60).tolist()
    rows = [tokens[:n] for n in range(1, len(tokens) + 1)]
    followed, matched = found(order, rows)
    for row, found_tokens, length in zip(rows, followed, matched, strict=True):
        expected, known = continuation(row, order)
        assert length == known
        assert not known or found_tokens.tolist() == expected
    assert set(matched.tolist()) == set(range(order + 1))


@pytest.mark.parametrize(
    ("tokens", "following", "matched"),
    [
        ([1, 2, 3, 1, 2], [3, 1, 2, 3, 1, 2], 2),
        ([1, 2, 3, 4, 1, 2, 3], [4, 1, 2, 3, 4, 1], 3),
        ([2, 2], [2] * 6, 1),  # overlaps itself: the last token repeats the one before
        ([2, 2, 2], [2] * 6, 2),
        ([1, 2, 3, 1, 2, 4, 1, 2], [4, 1, 2, 4, 1, 2], 2),  # the most recent occurrence wins
        ([1, 2, 3, 4, 2, 5, 1, 2], [3, 4, 2, 5, 1, 2], 2),  # but a longer match wins over a more recent one
        ([3], [], 0),
        ([0, 1], [], 0),  # what pads a shorter ending is no token
    ],
)
def test_what_followed_goes_on_into_itself(tokens, following, matched):
    out, length = found(3, [tokens])
    assert length[0] == matched
    assert not matched or out[0].tolist() == following


@pytest.mark.parametrize(
    ("tokens", "drafts", "following", "probability"),
    [
        ([1, 2, 3, 1, 2], (), 3, 0.9),
        ([1, 2, 3, 4, 1, 2, 3], (), 4, 0.95),
        ([5, 2, 3, 4, 2], (), 3, 0.3),
        ([5, 2, 3, 4, 2], (3,), 4, 0.9),  # what was drafted as it was found has matched as well
        ([5, 2, 3, 4, 2], (3, 4, 2, 3), 4, 1 - 0.1 / 4),
    ],
)
def test_alone_it_predicts_what_followed(tokens, drafts, following, probability):
    probabilities = drafted(look_up(3, alone=True), tokens, drafts)
    np.testing.assert_allclose(probabilities[following], probability, rtol=1e-5)
    np.testing.assert_allclose(np.delete(probabilities, following), (1 - probability) / (VOCAB - 1), rtol=1e-4)


@pytest.mark.parametrize(
    ("tokens", "drafts"),
    [([3], ()), ([1, 2, 3], ()), ([0], ()), ([0, 1], ()), ([1, 2, 3, 1], (5,)), ([1, 2, 1], (2, 2))],
)
def test_alone_it_has_no_opinion_without_a_match_or_behind_another_draft(tokens, drafts):
    np.testing.assert_allclose(drafted(look_up(3, alone=True), tokens, drafts), 1 / VOCAB, rtol=1e-6)


def test_beside_a_model_it_weighs_by_how_much_matched():
    logits = np.random.default_rng(0).normal(size=VOCAB)
    q = np.asarray(jax.nn.softmax(logits))
    one = np.eye(VOCAB)
    for tokens, drafts, token, weight in (
        ([1, 2, 3, 4, 1, 2], (), 3, 0.45),
        ([1, 2, 3, 4, 1, 2], (3,), 4, 0.6),
        ([1, 2, 3, 4, 1, 2], (3, 4), 1, 0.675),
        ([5, 6, 5], (), 6, 0.0),  # one token says too little
        ([5, 6, 5], (6,), 5, 0.45),
        ([1, 2, 3, 4, 1, 2], (4,), 0, 0.0),
        ([1, 2, 3, 4], (), 0, 0.0),
    ):
        np.testing.assert_allclose(
            drafted(look_up(3), tokens, drafts, logits), (1 - weight) * q + weight * one[token], atol=1e-6
        )


def test_behind_the_longest_draft_nothing_is_known():
    tokens = [1, 2, 3, 4, 1, 2]
    following, _ = continuation(tokens, 3)
    assert drafted(look_up(3), tokens, following[: K - 1]).max() > 0.5
    row = jnp.asarray([following], jnp.int32)
    known = find(look_up(3), jnp.asarray([tokens], jnp.int32), jnp.asarray([len(tokens)], jnp.int32), K)
    even = jnp.full((1, VOCAB), 1 / VOCAB, jnp.float32)
    np.testing.assert_array_equal(mixed(look_up(3), known, row, jnp.int32(K), jnp.log(even), even)[1], even)


def test_a_model_that_says_nan_says_nan_still():
    tokens, length = jnp.asarray([[1, 2, 3, 1, 2], [0, 1, 2, 3, 4]], jnp.int32), jnp.asarray([5, 5], jnp.int32)
    for value in (jnp.nan, jnp.inf, -jnp.inf):
        logits = jnp.full((2, VOCAB), value, jnp.float32)
        out = next_token(look_up(3), tokens, length, logits)
        assert not np.isfinite(jax.nn.softmax(out)).any()


def test_an_order_of_nothing_is_refused():
    with pytest.raises(UserError, match="order of a look-up must be a whole number from 1 to 32, not 0"):
        look_up(0)


# Through the loop.


@functools.cache
def pair_of(alone: bool, coupling="maximal", bonus="verifier", rule=rules.lossless, vocab_size=6, k_max=4) -> Lab:
    """A pair of table models with a look-up of two tokens, or the look-up alone."""
    base = lab(vocab_size=vocab_size, k_max=k_max)
    model = table_model(vocab_size)
    drafter, params = (uniform(vocab_size, 1 << 16), {}) if alone else (model, base.drafter)
    plan = Plan(
        *(model, drafter, (rule,), lookahead.fixed(3), k_max, vocab_size, (EOS,), coupling, bonus),
        lookup=look_up(2, alone=alone),
    )
    return base._replace(programs=compile_plan(plan), drafter=params)


PROMPTS = ((1,), (1, 2, 0, 1, 2), (3, 1, 3, 1), (0, 0, 0), (1, 0, 4, 3, 2), (4, 4))


def cases(settings):
    return [Case("lossless", settings, prompt, new=30 - i, seed=i) for i, prompt in enumerate(PROMPTS)]


@pytest.mark.parametrize("alone", [False, True])
def test_greedy_text_is_the_verifiers_and_look_up_drafts_what_repeats(alone):
    pair = pair_of(alone)
    for forced in (0, 1, 4, -1):
        state = decode(pair, request(cases(Settings(0.0))), forced=forced)
        assert texts(state) == [greedy_text(pair, case) for case in cases(Settings(0.0))]
    info = jax.tree.map(np.asarray, decode(pair, request(cases(Settings(0.0))), forced=4).info)
    assert info.accepted.sum() > 0.4 * info.drafted.sum()  # greedy text of a table soon goes in circles
    plain = pair._replace(programs=compile_plan(pair.programs.plan._replace(lookup=None)))
    unaided = np.asarray(decode(plain, request(cases(Settings(0.0))), forced=4).info.accepted)
    assert info.accepted.sum() > 1.2 * unaided.sum()


@pytest.mark.parametrize("alone", [False, True])
def test_a_seeded_sample_is_the_verifiers_own(alone):
    batch = request(cases(Settings(0.8)))
    plan = pair_of(alone, "gumbel").programs.plan
    expected = texts(decode(lab()._replace(programs=compile_plan(plan._replace(drafter=None, lookup=None))), batch))
    for forced in (0, 1, 4, -1):
        assert texts(decode(pair_of(alone, "gumbel"), batch, forced=forced)) == expected


LENGTH, COPIES = 4, 4000


@pytest.mark.parametrize("coupling", ["maximal", "gumbel"])
@pytest.mark.parametrize("alone", [False, True])
def test_the_law_of_the_text_is_the_verifiers(alone, coupling):
    pair = pair_of(alone, coupling, "target", vocab_size=3, k_max=3)
    prompts = ((1, 2, 1), (0, 0), (1, 2, 0, 1, 2))
    keys = jax.random.split(jax.random.key(7), len(prompts) * COPIES)
    batch = request([Case(prompt=prompt, new=LENGTH + 4) for prompt in prompts for _ in range(COPIES)], keys)
    state = decode(pair, batch, 16, forced=3, rounds=LENGTH)
    assert int(np.sum(state.info.accepted)) > 1000 and int(np.sum(state.info.rejected)) > 1000
    tokens, start = np.asarray(state.tokens), np.asarray(batch.length)
    taken = np.take_along_axis(tokens, start[:, None] + np.arange(LENGTH), axis=1).reshape(len(prompts), COPIES, -1)
    _, _, p = Case(prompt=(1,)).tables(pair.p_table, pair.p_table)
    laws = [reference.autoregressive_law(p, 3, prompt, LENGTH) for prompt in prompts]
    assert_follows([tally(each, 3) for each in taken], laws)


def test_a_drafter_that_decodes_alone_takes_its_look_up_with_it():
    model, params = uniform(6, 64), {}
    plan = Plan(
        *(model, None, (rules.lossless,), lookahead.fixed(0), 0, 6),
        alone=Origin.DRAFTER,
        lookup=look_up(3, alone=True),
    )
    state = decode(Lab(compile_plan(plan), params, {}), request([Case(prompt=(1, 2, 3, 1, 2), new=7)]))
    assert texts(state)[0] == (1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3)
    cascade = compile_plan(
        Plan(model, model, (rules.chow,), lookahead.fixed(0), 1, 6, lookup=look_up(3, alone=True)), advance_sequential
    )
    asked = request([Case(prompt=(1, 2, 3, 1, 2), new=7)])._replace(alpha=jnp.full((1,), 0.5, jnp.float32))
    assert texts(decode(Lab(cascade, params, params), asked))[0] == texts(state)[0]
