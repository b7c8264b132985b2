"""Text to train on: prompts and answers as rows of one shape, in an order that a seed and a step decide."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cascades.errors import UserError
from cascades.tokenizers import Tokenizer
from cascades.typing import Array, Float, Int


class Example(NamedTuple):
    """Token ids of a prompt (an encoder–decoder's start token behind it) and of its answer.

    taught: one row of `Taught`, without padding, where a teacher has read the example already.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    taught: "Taught | None" = None


class Taught(NamedTuple):
    """What a teacher makes of a batch.

    prompt: its hidden states `[b, s, d]` of the prompts' tokens but the last; None where nobody reads them. answer:
    `[b, n, d]`: number i scores token i of the answer. total: float32 `[b, n]`, log of the sum of the exponentials of
    these scores. favourite: int32 `[b, n]`, the token with the highest.
    """

    prompt: Float[Array, "b s d"] | None
    answer: Float[Array, "b n d"]
    total: Float[Array, "b n"]
    favourite: Int[Array, "b n"]


class Batch(NamedTuple):
    """Prompts and answers of one shape each, padded on the right with zeros.

    prompt: int32 `[b, s]`. length: int32 `[b]`, of the prompts. answer: int32 `[b, n]`. weight: float32 `[b, n]`, 1 at
    the tokens of an answer and 0 behind it. taught: what a teacher makes of them, where it has read them.
    """

    prompt: Int[Array, "b s"]
    length: Int[Array, " b"]
    answer: Int[Array, "b n"]
    weight: Float[Array, "b n"]
    taught: Taught | None = None


class BatchShape(NamedTuple):
    """Rows of a batch, and the most tokens of a prompt and of an answer."""

    batch: int
    prompt: int
    answer: int


def tokenized(
    records: Sequence[dict[str, Any]],
    tokenizer: Tokenizer,
    start: int | None,
    *,
    raw: bool,
    control_tokens: bool | None = None,
) -> list[Example]:
    """Turns lines of `launch/decode.py --output`, or any with `prompt` and `text`, into examples.

    Args:
      records: `token_ids`, where there are any, are the answer as it was decoded, with the end of the text if it came.
        An answer given as text alone is taken to be whole, and is ended as the model ends one.
      tokenizer: the verifier's. start: the first token of an encoder–decoder's answers, see `typing.Model`.
      raw: do not put a chat template around prompts. control_tokens: see `Tokenizer.prompt`.

    Raises:
      UserError: a line without them, or no line at all.
    """
    texts_alone = any(not record.get("token_ids") for record in records)
    end = tokenizer.end_of_answer(raw=raw) if texts_alone else None
    examples = []
    for number, record in enumerate(records, 1):
        prompt, text, ids = record.get("prompt"), record.get("text"), record.get("token_ids")
        if not isinstance(prompt, str) or not (isinstance(text, str) or isinstance(ids, list)):
            raise UserError(f"line {number} of the training text should hold a prompt and a text, but does not")
        before = tokenizer.prompt(prompt, raw=raw, control_tokens=control_tokens)
        before = before if start is None else [*before, start]
        answer = ids if ids else [*tokenizer.split(text or "", False), *([] if end is None else [end])]
        if before and answer:
            examples.append(Example(tuple(before), tuple(answer)))
    if not examples:
        raise UserError("the training text holds no prompt with an answer: give it some lines")
    return examples


def fitting(examples: Sequence[Example], sizes: BatchShape) -> list[Example]:
    """Returns the examples whose prompts fit; longer answers are cut, which loses nothing but their ends.

    Raises:
      UserError: there are fewer than a batch.
    """
    short = (each for each in examples if len(each.prompt) <= sizes.prompt)
    fitted = [each._replace(answer=each.answer[: sizes.answer]) for each in short]
    if len(fitted) < sizes.batch:
        raise UserError(
            f"a batch of {sizes.batch} was asked for, but only {len(fitted)} of {len(examples)} prompts have at most "
            f"{sizes.prompt} tokens: raise PROMPT_TOKENS, lower BATCH_SIZE or give more text"
        )
    return fitted


def batch_at(examples: Sequence[Example], sizes: BatchShape, seed: int, step: int) -> Batch:
    """Returns the batch of a step: every epoch is a new order of all examples, less what is left at its end."""
    epoch, at = divmod(step, len(examples) // sizes.batch)
    order = np.random.default_rng((seed, epoch)).permutation(len(examples))
    return padded([examples[i] for i in order[at * sizes.batch : (at + 1) * sizes.batch]], sizes)


def padded(examples: Sequence[Example], sizes: BatchShape) -> Batch:
    """Returns a batch of these examples; rows that are missing weigh nothing."""
    prompt, answer = np.zeros((sizes.batch, sizes.prompt), np.int32), np.zeros((sizes.batch, sizes.answer), np.int32)
    length, weight = np.ones((sizes.batch,), np.int32), np.zeros((sizes.batch, sizes.answer), np.float32)
    for row, each in enumerate(examples):
        prompt[row, : len(each.prompt)] = each.prompt
        answer[row, : len(each.answer)] = each.answer
        weight[row, : len(each.answer)] = 1.0
        length[row] = len(each.prompt)
    return Batch(prompt, length, answer, weight, _taught(examples, sizes))  # pyright: ignore[reportArgumentType]


def _taught(examples: Sequence[Example], sizes: BatchShape) -> Taught | None:
    rows = [each.taught for each in examples]
    if not rows or rows[0] is None:
        return None

    def stacked(width: int, parts: Sequence[Any]) -> Any:
        if parts[0] is None:
            return None
        padded = np.zeros((sizes.batch, width, *parts[0].shape[1:]), parts[0].dtype)
        for row, part in enumerate(parts):
            padded[row, : len(part)] = part
        return padded

    prompt, *along = zip(*(row for row in rows if row), strict=True)
    return Taught(stacked(sizes.prompt, prompt), *(stacked(sizes.answer, parts) for parts in along))


def held_out(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Splits off a share for evaluation; lines with the same prompt stay together.

    Raises:
      UserError: nothing would be left of one part.
    """
    prompts = sorted({each.prompt for each in examples})
    count = round(share * len(prompts))
    if not 0 < count < len(prompts):
        raise UserError(f"HELD_OUT ({share}) of {len(prompts)} prompts is {count}: some for each part are needed")
    chosen = np.random.default_rng(seed).permutation(len(prompts))[:count]
    aside = {prompts[i] for i in chosen}
    return [each for each in examples if each.prompt not in aside], [each for each in examples if each.prompt in aside]
