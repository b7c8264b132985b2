"""What a verifier makes of every example, read once and kept in a file: most of a step is the verifier's pass."""

import os
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cascades.training.data import Batch, Example, Sizes, Taught, padded
from cascades.typing import Params

_ROUND_UP = 64  # rows of similar examples are as long, so that few shapes are compiled
_KEPT = jnp.bfloat16


def recalled(
    examples: Sequence[Example],
    rows: int,
    width: int,
    teach: Callable[[Params, Batch], Batch],
    params: Params,
    path: pathlib.Path,
    *,
    prompts: bool,
    progress: Callable[[int], None],
) -> list[Example]:
    """Returns the examples with what a teacher makes of them, from a file that is written at the first call.

    Args:
      rows: examples of one pass. width: numbers of a hidden state. teach: see `learner.Learner`; compiled for a few
        shapes. path: the file, of bfloat16 `[tokens, d]`, which appears when it is whole. prompts: whether hidden
        states of prompts are kept too. progress: is told how many examples more were read.
    """
    counts = [(len(each.prompt) - 1 if prompts else 0) + len(each.answer) for each in examples]
    ends = np.cumsum(counts)
    shape = int(ends[-1]), width
    if not path.is_file() or path.stat().st_size != np.prod(shape) * jnp.dtype(_KEPT).itemsize:
        scratch = path.with_suffix(".partial")
        store = np.memmap(scratch, _KEPT, "w+", shape=shape)
        order = sorted(range(len(examples)), key=lambda i: (-len(examples[i].prompt), -len(examples[i].answer), i))
        for first in range(0, len(order), rows):
            group = order[first : first + rows]
            _read(
                [examples[i] for i in group], [store[ends[i] - counts[i] : ends[i]] for i in group], rows, teach, params
            )
            progress(len(group))
        store.flush()
        del store
        os.replace(scratch, path)
    kept = np.memmap(path, _KEPT, "r", shape=shape)
    found = []
    for each, count, end in zip(examples, counts, ends, strict=True):
        states, answer = kept[end - count : end], len(each.answer)
        before = states[: count - answer] if prompts else None
        found.append(each._replace(taught=Taught(before, states[count - answer :])))  # pyright: ignore[reportArgumentType]
    return found


def _read(group: list[Example], places: list[np.ndarray], rows: int, teach, params: Params) -> None:
    """Writes what the teacher makes of some examples to their places."""
    widest = Sizes(
        rows, *(_up(max(len(part) for part in parts)) for parts in zip(*(each[:2] for each in group), strict=True))
    )
    taught = jax.device_get(teach(params, jax.tree.map(jnp.asarray, padded(group, widest))).taught)
    for row, (each, place) in enumerate(zip(group, places, strict=True)):
        answer = len(each.answer)
        if len(place) > answer:
            place[:-answer] = taught.prompt[row, : len(place) - answer]
        place[len(place) - answer :] = taught.answer[row, :answer]


def _up(value: int) -> int:
    return -(-value // _ROUND_UP) * _ROUND_UP
