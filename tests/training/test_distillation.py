"""What a verifier tells a drafter: hidden states read once and kept, and scores of the tokens that it can say."""

import dataclasses
import errno
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cascades.errors import UserError
from cascades.models import DecoderConfig, build
from cascades.models.layers import MASKED
from cascades.training import distillation, losses, policy
from cascades.training.data import BatchShape, Example, padded
from cascades.training.recall import recalled
from cascades.training.step import along_answers
from cascades.typing import Output

V, D = 24, 16
SHAPE = {"vocab_size": V, "d_model": D, "d_ff": 24, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8}
VERIFIER = DecoderConfig(**SHAPE, num_layers=2, context_length=512)
READER = DecoderConfig(**SHAPE, num_layers=1, context_length=512, reads_features=True)
SIZES = BatchShape(2, 8, 6)
LOSSES = [losses.forward_kl, losses.reverse_kl, losses.jensen_shannon, losses.total_variation, losses.rejection]


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)

    def some(count):
        return tuple(int(each) for each in rng.integers(0, V, count))

    return [Example(some(length), some(answer)) for length, answer in ((2, 6), (8, 1), (1, 3), (5, 5), (7, 4))]


@pytest.fixture(scope="module")
def verifier():
    model = build(VERIFIER, features=True)
    return model, model.init(jax.random.key(0))


@pytest.fixture(scope="module")
def teach(verifier):
    return jax.jit(distillation.teach(verifier[0], V, True))


def recall(examples, teach, params, folder, prompts=True, read=None):
    progress = (lambda more: None) if read is None else read.append
    return recalled(examples, 2, D, teach, params, folder, prompts=prompts, progress=progress)


def check(found, examples, teach, params, prompts):
    """Against a pass over each batch, in another shape than the one that was kept."""
    for first in range(0, len(examples), 2):
        ours = padded(found[first : first + 2], SIZES).taught
        theirs = teach(params, jax.tree.map(jnp.asarray, padded(examples[first : first + 2], SIZES))).taught
        assert (ours.prompt is not None) is prompts
        for row, each in enumerate(examples[first : first + 2]):
            at = slice(0, len(each.answer))
            np.testing.assert_allclose(ours.answer[row, at].astype(np.float32), theirs.answer[row, at], rtol=1e-2)
            np.testing.assert_allclose(ours.total[row, at], theirs.total[row, at], rtol=1e-5)
            np.testing.assert_array_equal(ours.favourite[row, at], theirs.favourite[row, at])
            if prompts:
                at = slice(0, len(each.prompt) - 1)
                np.testing.assert_allclose(ours.prompt[row, at].astype(np.float32), theirs.prompt[row, at], rtol=1e-2)


@pytest.mark.parametrize("prompts", [True, False])
def test_what_is_recalled_is_what_the_verifier_says(examples, verifier, teach, tmp_path, prompts):
    read = []
    found = recall(examples, teach, verifier[1], tmp_path / "recall", prompts, read)
    assert sum(read) == len(examples)
    check(found, examples, teach, verifier[1], prompts)


def test_it_is_read_once_and_other_text_anew(examples, verifier, teach, tmp_path):
    passes = []

    def counted(params, batch):
        passes.append(batch)
        return teach(params, batch)

    for part, expected in ((examples, 3), (examples, 3), (examples[:3], 5)):
        check(recall(part, counted, verifier[1], tmp_path), part, teach, verifier[1], True)
        assert len(passes) == expected


@pytest.mark.parametrize("torn", [0, 7])
def test_an_interrupted_reading_goes_on_where_it_was(examples, verifier, teach, tmp_path, torn):
    passes = []

    def broken(params, batch):
        passes.append(batch)
        if len(passes) == 3:
            raise KeyboardInterrupt
        return teach(params, batch)

    with pytest.raises(KeyboardInterrupt):
        recall(examples, broken, verifier[1], tmp_path)
    (partial,) = tmp_path.glob("*.partial")
    with open(partial, "ab") as file:
        file.write(b"x" * torn)
    read = []
    found = recall(examples, broken, verifier[1], tmp_path, read=read)
    assert len(passes) == 4 and read == [4, 1]
    check(found, examples, teach, verifier[1], True)


def test_a_full_disk_is_told(examples, verifier, teach, tmp_path, monkeypatch):
    def full(*given):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="could not be written to .*: No space left on device; make room"):
        recall(examples, teach, verifier[1], tmp_path)


def test_what_a_drafter_wrote_itself_is_not_taken_for_what_was_recalled(examples, verifier, teach, tmp_path):
    model, params = verifier
    batch = padded(recall(examples, teach, params, tmp_path)[:2], SIZES)
    assert batch.taught is not None
    answer = policy.answers_of(build(VERIFIER), V, (), SIZES.prompt + SIZES.answer, 1.0)
    assert answer(params, batch, jax.random.key(0)).taught is None


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_a_drafter_of_few_tokens_is_compared_as_if_it_had_all(verifier, examples, loss):
    """What it cannot say may be one column of p, but for a rule, which looks at single tokens."""
    ids = jnp.asarray([1, 2, 5, 9, 17], jnp.int32)
    model, params = verifier
    small = jax.random.normal(jax.random.key(3), (2, SIZES.answer, ids.size))
    ours = jnp.full((2, SIZES.answer, V), MASKED).at[:, :, ids].set(small)
    batch = jax.tree.map(jnp.asarray, padded(examples[:2], SIZES))
    batch = jax.jit(distillation.teach(model, V, False))(params, batch)

    fixed = model._replace(
        init_cache=lambda rows, slots: None,
        prefill=lambda *given: None,
        extend=lambda *given: (Output(ours), None),
        score=lambda params, features, tokens: small,
    )
    found = jax.jit(distillation.against(model, fixed, V, loss))({"head_ids": ids}, params, batch)
    theirs = jax.jit(lambda *given: along_answers(model, *given)[0].logits)(params, batch)
    np.testing.assert_allclose(found["loss"], loss(ours, theirs), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["acceptance"], 1 - losses.total_variation(ours, theirs), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found["agreement"], jnp.argmax(ours, -1) == jnp.argmax(theirs, -1))


@pytest.mark.parametrize("window", [None, 3], ids=["global", "sliding"])
def test_a_reader_trains_on_what_it_reads_in_the_loop(verifier, examples, teach, window):
    """Every depth scores as a round does: text behind the verifier's states, then drafts one by one behind its own."""
    local = (False, True) if window else ()
    drafter = build(dataclasses.replace(READER, num_layers=2, local_layers=local, window=window))
    params, each = drafter.init(jax.random.key(1)), examples[3]
    batch = teach(verifier[1], jax.tree.map(jnp.asarray, padded([each], SIZES)))
    outputs = jax.jit(lambda *given: list(distillation.drafted(drafter, *given, 3)))(params, batch)
    assert len(outputs) == 3
    text = jnp.asarray([each.prompt + each.answer], jnp.int32)
    empty = verifier[0].init_cache(1, text.shape[1])
    hidden = jax.jit(verifier[0].extend)(verifier[1], text, empty)[0].features
    before = jnp.pad(hidden, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    first = len(each.prompt) - 1
    extend = jax.jit(drafter.extend)
    for token in range(len(each.answer)):
        for depth in range(min(token + 1, 3)):
            known = first + token - depth + 1  # tokens that are decided when the round begins
            cache = drafter.init_cache(1, text.shape[1])
            for at in range(known + depth):
                read = before[:, at : at + 1] if at < known else output.features
                output, cache = extend(params, text[:, at : at + 1], cache, features=read)
            found = outputs[depth].logits[0, token]
            np.testing.assert_allclose(found, output.logits[0, -1], rtol=2e-4, atol=2e-4)


def test_figures_tell_each_draft_of_a_round(verifier, examples, teach):
    drafter = build(READER)
    params = drafter.init(jax.random.key(1))
    batch = teach(verifier[1], jax.tree.map(jnp.asarray, padded(examples[:2], SIZES)))
    one, three = (
        jax.jit(distillation.against(verifier[0], drafter, V, losses.forward_kl, depth))(params, verifier[1], batch)
        for depth in (1, 3)
    )
    assert set(three) - set(one) == {"acceptance_2", "acceptance_3", "agreement_2", "agreement_3"}
    np.testing.assert_allclose(three["acceptance"], one["acceptance"], rtol=1e-5)
    # The first token of an answer has no draft before it, the second one.
    np.testing.assert_array_equal(three["acceptance_2"][:, 0], three["acceptance"][:, 0])
    np.testing.assert_array_equal(three["acceptance_3"][:, :2], three["acceptance_2"][:, :2])
    assert np.abs(three["acceptance_2"] - three["acceptance"])[0, 1:].max() > 1e-6
