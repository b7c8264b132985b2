"""A drafter that reads its verifier's hidden states, through the same loop as every other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Lab, any_controller, come_and_go, crowd, decode, idler, request, texts

from cascades import lookahead, rules
from cascades.decoding import Plan, compile_plan
from cascades.errors import UserError
from cascades.models.api import build, decoder
from cascades.models.config import DecoderConfig, T5Config

VOCAB, SLOTS, K_MAX = 32, 40, 4
SHAPE = {"vocab_size": VOCAB, "context_length": SLOTS, "d_model": 16, "d_ff": 32, "num_heads": 2, "num_kv_heads": 1}
VERIFIER = DecoderConfig(**SHAPE, head_dim=8, num_layers=2, window=5, local_layers=(True, False))
DRAFTER = DecoderConfig(**SHAPE, head_dim=8, num_layers=1, reads_features=True)
CONTROLLERS = (lookahead.fixed(4), lookahead.verifier_guided(patience=2), idler(20))


@functools.cache
def weights():
    """Random weights that mostly write four tokens, so that the two agree now and then; one embedding and head."""
    large = decoder(VERIFIER).init(jax.random.key(0))
    large["final_norm"]["scale"] = large["final_norm"]["scale"] * 4
    large["embed"]["embedding"] = large["embed"]["embedding"].at[4:].multiply(0.2)
    small = decoder(DRAFTER).init(jax.random.key(1)) | {name: large[name] for name in ("embed", "final_norm")}
    return large, small


@functools.cache
def programs():
    plan = Plan(
        decoder(VERIFIER, features=True), decoder(DRAFTER), (rules.lossless,), any_controller(CONTROLLERS), K_MAX, VOCAB
    )
    return compile_plan(plan)


def test_rows_may_come_and_go():
    twice = [case._replace(seed=at) for at, case in enumerate(cases() + cases())]
    lab = Lab(programs(), *weights())
    assert come_and_go(lab, twice, len(cases()), 0, SLOTS) == texts(decode(lab, request(cases() + cases()), SLOTS, 0))


def run(cases, forced):
    return decode(Lab(programs(), *weights()), request(cases), SLOTS, forced)


def cases():
    base = crowd(rule="lossless", temperature=0.0)[:6]
    return [case._replace(new=SLOTS - len(case.prompt) - (0, 0, 3)[i % 3]) for i, case in enumerate(base)]


@functools.cache
def passes():
    large, small = decoder(VERIFIER), decoder(DRAFTER)
    empty = large.init_cache(1, SLOTS), small.init_cache(1, SLOTS)

    def verify(tokens):
        output, _ = large.extend(weights()[0], tokens, empty[0])
        return output.logits[0], output.features[0]

    def draft(tokens, features):
        output, _ = small.extend(weights()[1], tokens, empty[1], features=features)
        return output.logits[0], output.features[0]

    return jax.jit(verify), jax.jit(draft)


def padded(text):
    return jnp.asarray([list(text) + [0] * (SLOTS - len(text))], jnp.int32)


def naive(case, k):
    """Rounds without any cache: each token reads the whole text anew. Returns the text and what each round accepted."""
    verify, draft = passes()
    text, limit, accepted = list(case.prompt), len(case.prompt) + case.new, []
    while len(text) < limit:
        hidden = np.asarray(verify(padded(text))[1])
        before = np.zeros((SLOTS, hidden.shape[1]), np.float32)
        before[1 : len(text)] = hidden[: len(text) - 1]
        drafts = []
        for _ in range(min(k, limit - len(text) - 1)):
            logits, own = draft(padded(text + drafts), before[None])
            at = len(text) + len(drafts)
            before[at] = own[at - 1]
            drafts.append(int(np.argmax(logits[at - 1])))
        count = 0
        while True:
            token = int(np.argmax(verify(padded(text))[0][len(text) - 1]))
            text.append(token)
            if count >= len(drafts) or token != drafts[count]:
                break
            count += 1
        accepted.append(count)
    return text, accepted


@pytest.mark.parametrize("k", [1, 2, 4])
def test_a_draft_reads_the_verifiers_features_then_its_own(k):
    state = run(cases(), k)
    found = jax.tree.map(np.asarray, state.info)
    total = 0
    for row, case in enumerate(cases()):
        text, accepted = naive(case, k)
        assert list(np.asarray(state.tokens)[row, : len(text)]) == text
        expected = np.bincount(accepted, minlength=K_MAX + 1)
        np.testing.assert_array_equal(found.histogram[row], expected)
        total += sum(accepted)
    assert total > 20  # the drafter is right now and then, else nothing was shown


def test_a_drafter_that_idled_reads_on_in_chunks():
    """The text is the verifier's whatever drafts, also behind a long time without drafts."""
    adaptive, verifier = run(cases(), -1), run(cases(), 0)
    np.testing.assert_array_equal(adaptive.tokens, verifier.tokens)
    assert int(np.sum(adaptive.info.accepted)) > 0


def test_an_encoder_decoder_keeps_no_features():
    shape = {"vocab_size": 8, "num_layers": 1, "num_decoder_layers": 1, "d_model": 8, "d_ff": 8, "num_heads": 1}
    with pytest.raises(UserError, match="drafts for a decoder"):
        build(T5Config(**shape, head_dim=8), features=True)
