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
from cascades.decoding import Plan, compile_plan
from cascades.decoding.lookup import LookUp, find, look_up
from cascades.errors import UserError
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


def test_beside_a_model_one_token_says_too_little():
    rows = jnp.asarray([[5, 2, 3, 4, 2], [1, 2, 3, 1, 2]], jnp.int32)
    length = jnp.asarray([5, 5], jnp.int32)
    assert find(look_up(3), rows, length, K).matched.tolist() == [1, 2]
    assert find(look_up(3, alone=False), rows, length, K).matched.tolist() == [0, 2]
    assert find(look_up(1, alone=False), rows, length, K).matched.tolist() == [1, 1]  # it was asked for


def test_an_order_of_nothing_is_refused():
    with pytest.raises(UserError, match="order of a look-up must be a whole number from 1 to 32, not 0"):
        look_up(0)


# Through the loop.


@functools.cache
def pair_of(alone: bool, coupling="maximal", bonus="verifier", rule=rules.lossless, vocab_size=6, k=3) -> Lab:
    """A pair of table models with a look-up of two tokens, or the look-up alone; k of either a round."""
    base = lab(vocab_size=vocab_size)
    model = table_model(vocab_size)
    plan = Plan(
        *(model, None if alone else model, (rule,), lookahead.fixed(k), 4, vocab_size, (EOS,), coupling, bonus),
        lookup=look_up(2, alone=alone),
    )
    return base._replace(programs=compile_plan(plan), drafter={} if alone else base.drafter)


PROMPTS = ((1,), (1, 2, 0, 1, 2), (3, 1, 3, 1), (0, 0, 0), (1, 0, 4, 3, 2), (4, 4))


def cases(settings):
    return [Case("lossless", settings, prompt, new=30 - i, seed=i) for i, prompt in enumerate(PROMPTS)]


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_greedy_text_is_the_verifiers_and_look_up_drafts_what_repeats(alone, k):
    pair, batch = pair_of(alone, k=k), request(cases(Settings(0.0)))
    state = decode(pair, batch)
    assert texts(state) == [greedy_text(pair, case) for case in cases(Settings(0.0))]
    info = jax.tree.map(np.asarray, state.info)
    assert info.found_kept.sum() > 0.4 * info.found.sum() > 0  # greedy text of a table soon goes in circles
    if alone:
        np.testing.assert_array_equal(info.found, info.drafted)
        np.testing.assert_array_equal(info.found_kept, info.accepted)
        np.testing.assert_array_equal(info.drafter_steps, 0)
    else:
        assert (info.drafter_steps == info.drafted - info.found).all() and info.drafter_steps.sum() > 0
        plain = pair._replace(programs=compile_plan(pair.programs.plan._replace(lookup=None)))
        assert info.accepted.sum() > 1.1 * np.asarray(decode(plain, batch).info.accepted).sum()


@pytest.mark.parametrize("forced", [0, 1, 4])
def test_a_forced_length_is_the_drafters_or_else_the_look_ups(forced):
    for alone in (False, True):
        state = decode(pair_of(alone), request(cases(Settings(0.0))), forced=forced)
        assert texts(state) == [greedy_text(pair_of(alone), case) for case in cases(Settings(0.0))]
        found, drafted = int(np.sum(state.info.found)), int(np.sum(state.info.drafted))
        assert found == (drafted if alone else 0) and (drafted > 0) == (forced > 0)


@pytest.mark.parametrize("alone", [False, True])
def test_a_seeded_sample_is_the_verifiers_own(alone):
    batch = request(cases(Settings(0.8)))
    plan = pair_of(alone, "gumbel").programs.plan
    expected = texts(decode(lab()._replace(programs=compile_plan(plan._replace(drafter=None, lookup=None))), batch))
    for k in (1, 4):
        assert texts(decode(pair_of(alone, "gumbel", k=k), batch)) == expected


LENGTH, COPIES = 4, 4000
WITH_ALPHA = {
    "lossless": 0.0, "token_v3": 0.3, "token_v2": 0.1, "opt": 0.5, "chow": 0.6, "lossy": 0.4, "bild": 1.0,
    "typical": 0.9, "cactus": 0.1,
}  # fmt: skip


def block_law(name, alpha, p_table, q_table, alone, prompt, k=3):
    """The law of the next `LENGTH` tokens of rounds that look up at most k tokens, or else draft k of a model.

    A token that was found is drawn from itself alone. Of it, rules that see the verifier alone decide as ever; the
    others give the verifier's law.
    """
    law = np.zeros((3,) * LENGTH)
    order, least = 2, 1 if alone else 2

    def at(text):
        context = (text[-2] if len(text) > 1 else 0) * 3 + text[-1]
        return p_table[context], q_table[context]

    def decided(text, token=None):
        """pi, and the q that was drawn from."""
        p, q = at(text)
        if token is not None:
            q = np.eye(3)[token]
            if name not in ("lossless", "token_v2", "token_v3", "typical"):
                return p, q
        return reference.target(name, reference.Pair(q, p, q, p), alpha), q

    def go(text, chance, found, drafts):
        new = len(text) - len(prompt)
        if chance == 0:
            return
        if new == LENGTH:
            law[tuple(text[len(prompt) :])] += chance
        elif found:
            pi, _ = decided(text, found[0])
            for token in range(3):
                rest = found[1:] if token == found[0] else None
                behind(text + [token], chance * pi[token], rest, 0, token == found[0])
        elif drafts:
            pi, q = decided(text)
            kept, rest = np.minimum(pi, q), np.maximum(pi - q, 0)
            for token in range(3):
                behind(text + [token], chance * kept[token], [], drafts - 1, True)
                start(text + [token], chance * rest[token])
        else:
            raise AssertionError

    def behind(text, chance, found, drafts, kept):
        """Behind a draft that was kept the block goes on; behind its end the verifier says a token of its own."""
        if not kept:
            start(text, chance)
        elif found or drafts:
            go(text, chance, found, drafts)
        else:
            verifier(text, chance)

    def verifier(text, chance):
        if len(text) - len(prompt) == LENGTH:
            go(text, chance, [], 1)
            return
        for token, share in enumerate(at(text)[0]):
            start(text + [token], chance * share)

    def start(text, chance):
        if len(text) - len(prompt) == LENGTH:
            go(text, chance, [], 1)
            return
        tokens, matched = continuation(text, order, k)
        if matched >= least:
            go(text, chance, tokens[:k], 0)
        elif alone:
            verifier(text, chance)
        else:
            go(text, chance, [], k)

    start(list(prompt), 1.0)
    np.testing.assert_allclose(law.sum(), 1, atol=1e-6)
    return law


@pytest.mark.parametrize("name", WITH_ALPHA)
@pytest.mark.parametrize(("alone", "coupling"), [(True, "maximal"), (True, "gumbel"), (False, "maximal")])
def test_the_law_of_the_text_is_that_of_each_tokens_source(name, alone, coupling):
    pair = pair_of(alone, coupling, rule=getattr(rules, name), vocab_size=3)
    alpha = WITH_ALPHA[name]
    prompts = ((1, 2, 1), (0, 0), (1, 2, 0, 1, 2))
    keys = jax.random.split(jax.random.key(7), len(prompts) * COPIES)
    batch = request([Case(prompt=prompt, new=LENGTH + 4) for prompt in prompts for _ in range(COPIES)], keys)
    batch = batch._replace(alpha=jnp.full_like(batch.alpha, alpha), rule=jnp.zeros_like(batch.rule))
    state = decode(pair, batch, 16, rounds=LENGTH)
    assert int(np.sum(state.info.found_kept)) > 1000
    assert int(np.sum(state.info.found - state.info.found_kept)) > 100
    tokens, start = np.asarray(state.tokens), np.asarray(batch.length)
    taken = np.take_along_axis(tokens, start[:, None] + np.arange(LENGTH), axis=1).reshape(len(prompts), COPIES, -1)
    tables = [np.stack([reference.softmax(row) for row in x]) for x in (pair.p_table, lab(vocab_size=3).q_table)]
    laws = [block_law(name, alpha, *tables, alone, prompt) for prompt in prompts]
    assert_follows([tally(each, 3) for each in taken], [law.reshape(tally(taken[0], 3).shape) for law in laws])
