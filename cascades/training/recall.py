"""What a verifier makes of every example, read once and kept in a file: most of a step is the verifier's pass."""

import hashlib
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cascades.errors import UserError
from cascades.training.data import Batch, BatchShape, Example, Taught, padded
from cascades.typing import Params

_ROUND_UP = 64  # rows of similar examples are as long, so that few shapes are compiled


def _kept(width: int) -> np.dtype:
    """What the file holds of a token: bits of bfloat16; the sums are those of `Taught`, of tokens of answers alone."""
    return np.dtype([("state", np.uint16, (width,)), ("total", np.float32), ("favourite", np.int32)])


def recalled(
    examples: Sequence[Example],
    rows: int,
    width: int,
    teach: Callable[[Params, Batch], Batch],
    params: Params,
    folder: pathlib.Path,
    *,
    prompts: bool,
    progress: Callable[[int], None],
) -> list[Example]:
    """Returns the examples with what a teacher makes of them, from a file that is written at the first call.

    The file holds hidden states (bfloat16) and sums of the scores token by token, the longest examples first, and grows
    by whole passes: a call that was interrupted is gone on with.

    Args:
      rows: examples of one pass. width: numbers of a hidden state. teach: see `learner.Learner`; compiled for a few
        shapes. folder: where the file is, under a name that tells what was read. prompts: whether hidden states of
        prompts are kept too. progress: is told how many examples more were read.

    Raises:
      UserError: the file cannot be written.
    """
    order = sorted(range(len(examples)), key=lambda i: (-len(examples[i].prompt), -len(examples[i].answer), i))
    counts = np.asarray([(len(examples[i].prompt) - 1 if prompts else 0) + len(examples[i].answer) for i in order])
    ends = np.cumsum(counts)
    text = hashlib.sha256(repr((prompts, width, [each[:2] for each in examples])).encode()).hexdigest()[:12]
    path, kind = folder / f"{text}.states", _kept(width)
    if path.is_file():
        progress(len(examples))
    else:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(examples, order, counts, ends, kind, rows, teach, params, path, progress)
        except OSError as error:
            size = ends[-1] * kind.itemsize / 1e9
            raise UserError(
                f"the verifier's hidden states ({size:.1f} GB) could not be written to {folder}: {error.strerror}; "
                "make room and run the same command again, or set RECALL=False"
            ) from None
    kept: Any = np.memmap(path, kind, "r", shape=(int(ends[-1]),))
    with_recall = list(examples)
    for i, count, end in zip(order, counts, ends, strict=True):
        first = end - len(examples[i].answer)
        before = kept["state"][end - count : first].view(jnp.bfloat16) if prompts else None
        along = kept[first:end]
        taught = Taught(before, along["state"].view(jnp.bfloat16), along["total"], along["favourite"])
        with_recall[i] = examples[i]._replace(taught=taught)
    return with_recall


def _write(examples, order, counts, ends, kind: np.dtype, rows, teach, params, path: pathlib.Path, progress) -> None:
    """Writes the file, from the first pass on that is not in it; `ends`: of the examples in it, in tokens."""
    scratch = path.with_suffix(".partial")
    with open(scratch, "ab") as file:
        done = int(np.searchsorted(ends, file.tell() // kind.itemsize, side="right")) // rows * rows
        file.truncate(int(ends[done - 1]) * kind.itemsize if done else 0)
        progress(done)
        for first in range(done, len(order), rows):
            group = slice(first, first + rows)
            file.write(_read([examples[i] for i in order[group]], counts[group], kind, rows, teach, params).tobytes())
            file.flush()
            progress(len(order[group]))
    os.replace(scratch, path)


def _read(group: list[Example], counts: np.ndarray, kind: np.dtype, rows: int, teach, params: Params) -> np.ndarray:
    """Returns what the teacher makes of some examples, `kind[tokens]`, one behind the other."""
    sizes = BatchShape(rows, _up(max(len(each.prompt) for each in group)), _up(max(len(each.answer) for each in group)))
    batch = jax.tree.map(jnp.asarray, padded(group, sizes))
    taught = jax.device_get(teach(params, batch).taught)
    packed = np.zeros(int(counts.sum()), kind)
    end = 0
    for row, (each, count) in enumerate(zip(group, counts, strict=True)):
        first, end, n = end, end + int(count), len(each.answer)
        if before := count - n:
            packed["state"][first : end - n] = _bits(taught.prompt[row, :before])
        along = packed[end - n : end]
        along["state"], along["total"], along["favourite"] = (
            _bits(taught.answer[row, :n]),
            taught.total[row, :n],
            taught.favourite[row, :n],
        )
    return packed


def _bits(states: np.ndarray) -> np.ndarray:
    return states.astype(jnp.bfloat16).view(np.uint16)


def _up(value: int) -> int:
    return -(-value // _ROUND_UP) * _ROUND_UP
