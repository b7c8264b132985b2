"""Rows, weights, order and the split of training text."""

import numpy as np
import pytest

from cascades import tokenizers
from cascades.errors import UserError
from cascades.training import data
from cascades.training.data import BatchShape, Example

SIZES = BatchShape(batch=3, prompt=4, answer=5)
EXAMPLES = [Example((1,) * (1 + n % 4), tuple(range(n + 1))) for n in range(10)]


def test_lines_become_tokens(tiny_files):
    tokenizer = tokenizers.load(tiny_files.chat)
    decoded = {"prompt": "the fox", "text": "ignored", "token_ids": [7, 8]}
    (first,) = data.tokenized([decoded], tokenizer, None, raw=False)
    assert first == Example(tuple(tokenizer.chat([{"role": "user", "content": "the fox"}])), (7, 8))
    (second,) = data.tokenized([{"prompt": "the fox", "text": "jumps"}], tokenizer, 5, raw=True)
    assert second.prompt == (*tokenizer.encode("the fox"), 5)  # an encoder–decoder's start
    assert second.answer == (*tokenizer.split("jumps", False), min(tokenizer.eos_ids))
    (third,) = data.tokenized([{"prompt": "the fox", "text": "jumps"}], tokenizer, None, raw=False)
    assert third.answer == (*tokenizer.split("jumps", False), tokenizer.eos_ids[-1])  # <|im_end|>, not <|endoftext|>
    with pytest.raises(UserError, match="line 2 of the training text should hold a prompt and a text"):
        data.tokenized([decoded, {"prompt": 3}], tokenizer, None, raw=True)


def test_rows_are_padded_and_cut():
    batch = data.padded([Example((4, 5), (6, 7, 8))], SIZES)
    np.testing.assert_array_equal(batch.prompt, [[4, 5, 0, 0], [0] * 4, [0] * 4])
    np.testing.assert_array_equal(batch.length, [2, 1, 1])
    np.testing.assert_array_equal(batch.answer, [[6, 7, 8, 0, 0], [0] * 5, [0] * 5])
    np.testing.assert_array_equal(batch.weight, [[1, 1, 1, 0, 0], [0] * 5, [0] * 5])
    assert max(len(each.answer) for each in data.fitting(EXAMPLES, SIZES)) == 5
    with pytest.raises(UserError, match="a batch of 3 was asked for, but only 2 of 2 prompts have at most 4 tokens"):
        data.fitting(EXAMPLES[:2], SIZES)


def test_an_epoch_shows_every_example_once_and_a_step_tells_which():
    fit = data.fitting(EXAMPLES[:9], SIZES)
    for epoch in range(2):
        batches = [data.batch_at(fit, SIZES, 1, 3 * epoch + step) for step in range(3)]
        assert sorted(int(row.sum()) for batch in batches for row in batch.weight) == sorted(
            len(each.answer) for each in fit
        )
    first, again, later, other = (data.batch_at(fit, SIZES, *at) for at in ((1, 2), (1, 2), (1, 5), (2, 2)))
    np.testing.assert_array_equal(first.answer, again.answer)
    assert not np.array_equal(first.answer, later.answer) or not np.array_equal(first.answer, other.answer)


def test_held_out_prompts_are_in_one_part_alone():
    train, aside = data.held_out(EXAMPLES, 0.5, 0)
    assert len(train) + len(aside) == 10
    assert not {each.prompt for each in train} & {each.prompt for each in aside}
    assert data.held_out(EXAMPLES, 0.5, 0) == (train, aside)
    for share in (0.0, 1.0):
        with pytest.raises(UserError, match="HELD_OUT"):
            data.held_out(EXAMPLES, share, 0)
