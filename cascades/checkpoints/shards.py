"""Which `*.safetensors` of a directory hold its model, and which file holds each tensor.

An index, where there is one, names the file of every tensor; copies in other files do not count. Only files of the
directory itself are opened.
"""

import collections
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError, safe_open

from cascades.checkpoints import names
from cascades.checkpoints.json_files import read_object
from cascades.checkpoints.sources import first_line
from cascades.errors import UserError

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
_SHARD = re.compile(r"(.+)-(\d{5,6})-of-(\d{5,6})\.safetensors$")
# Files beside a model that are not its own: adapters, a trainer's state, the same weights under other names.
_BESIDE = re.compile(r"(adapter|lora|pytorch_lora|consolidated|optimizer|optim|scheduler|scaler|random_state|rng_state|"
                     r"training_|ema[._-]|value_head|v_head)")  # fmt: skip
_ADAPTER = re.compile(r"adapter|lora")


class Shards:
    """The opened files of a model.

    files: by path, as `safe_open` returns them. where: the path of each tensor's file.
    """

    def __init__(self, directory: pathlib.Path):
        """Opens the files of the model in a directory.

        Raises:
          UserError: no weights, weights of several models, a file that is missing, is cut off or lacks a tensor, or an
            index that names a file elsewhere.
        """
        assigned = _weight_map(directory)
        self.files = {path: _open(path) for path in _chosen(directory, assigned)}
        held = {path: set(file.keys()) for path, file in self.files.items()}  # noqa: SIM118 - not a dict
        where = _named_once(directory, held) if assigned is None else _assigned(directory, assigned, held)
        self.where = dict(sorted(where.items()))

    def tensor(self, name: str) -> Any:
        """A tensor as a lazy slice: nothing is read yet."""
        return self.files[self.where[name]].get_slice(name)


def files_of(directory: pathlib.Path) -> list[pathlib.Path]:
    """The files of a directory's model.

    Raises:
      UserError: no model, or several.
    """
    return _chosen(directory, _weight_map(directory))


def _chosen(directory: pathlib.Path, assigned: Mapping[str, str] | None) -> list[pathlib.Path]:
    """An index counts before all other files, such as a `model.safetensors` of an earlier state."""
    return _unindexed(directory) if assigned is None else _indexed(directory, assigned)


def _weight_map(directory: pathlib.Path) -> dict[str, str] | None:
    """The name of each tensor's file, as the index says; None without an index.

    Raises:
      UserError: no `weight_map` of texts, or a file elsewhere. It is told by its name, not by where it leads: the files
        of the hub's cache are links out of the directory.
    """
    index = directory / INDEX
    if not index.exists():
        return None
    assigned = read_object(index).get("weight_map")
    if not isinstance(assigned, dict) or not assigned or not all(isinstance(file, str) for file in assigned.values()):
        raise UserError(f"{index} should give weight_map, the file of every tensor, but does not: fetch it again.")
    for file in set(assigned.values()):
        if not re.fullmatch(r"[^/\\:\0]{1,200}\.safetensors", file):
            raise UserError(
                f"{index} should name *.safetensors beside it, but weight_map has {file[:100]!r}: correct the file."
            )
    return assigned


def _indexed(directory: pathlib.Path, assigned: Mapping[str, str]) -> list[pathlib.Path]:
    shards = [directory / name for name in sorted(set(assigned.values()))]
    missing = [path.name for path in shards if not path.is_file()]
    if missing:
        raise UserError(
            f"{directory} should hold the {len(shards)} files that {INDEX} names, but {', '.join(missing[:6])} "
            f"{'is' if len(missing) == 1 else 'are'} missing: fetch the model again."
        )
    return shards


def _unindexed(directory: pathlib.Path) -> list[pathlib.Path]:
    """`model.safetensors`, else the only other file, else all shards of one model."""
    if (directory / WHOLE).is_file():
        return [directory / WHOLE]
    files = sorted(path for path in directory.glob("*.safetensors") if path.is_file())
    candidates = [path for path in files if not _BESIDE.match(path.name)]
    if len(candidates) == 1 and not _SHARD.match(candidates[0].name):
        return candidates
    parts = [_SHARD.match(path.name) for path in candidates]
    series = {(part[1], part[3]) for part in parts if part}
    if candidates and all(parts) and len(series) == 1:
        numbers = sorted(int(part[2]) for part in parts if part)
        count = int(next(iter(series))[1])
        if numbers == list(range(1, count + 1)):
            return candidates
        absent = sorted(set(range(1, count + 1)) - set(numbers))[:6] if count <= 10**6 else []
        raise UserError(
            f"{directory} should hold {count} shards, but has {len(numbers)}"
            + (f" (missing: {', '.join(map(str, absent))})" if absent else "")
            + ": fetch the model again."
        )
    if not candidates and any(_ADAPTER.match(path.name) for path in files):
        raise UserError(
            f"{directory} holds an adapter ({files[0].name}) without the model that it changes: merge the two "
            "and give the result."
        )
    listed = ", ".join(path.name for path in files[:8]) or "none"
    raise UserError(
        f"{directory} should hold one model as {WHOLE}, or shards and their {INDEX}, but of *.safetensors it holds "
        f"{listed}: leave the files of one model."
    )


def _assigned(
    directory: pathlib.Path, assigned: Mapping[str, str], held: Mapping[pathlib.Path, set[str]]
) -> dict[str, pathlib.Path]:
    where = {name: directory / file for name, file in assigned.items()}
    if lost := sorted(name for name, path in where.items() if name not in held[path]):
        name = lost[0]
        raise UserError(
            f"{where[name]} should hold {name}{f' and {len(lost) - 1} more' if len(lost) > 1 else ''}, as {INDEX} "
            "says, but does not: fetch the model again."
        )
    tensors = (name for inside in held.values() for name in inside)
    unnamed = sorted(name for name in tensors if name not in where and names.may_be_read(name))
    if unnamed:
        raise UserError(
            f"{directory} holds {unnamed[0]}{f' and {len(unnamed) - 1} more' if len(unnamed) > 1 else ''}, which "
            f"{INDEX} does not name: fetch the model again."
        )
    return where


def _named_once(directory: pathlib.Path, held: Mapping[pathlib.Path, set[str]]) -> dict[str, pathlib.Path]:
    counts = collections.Counter(name for tensors in held.values() for name in tensors)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise UserError(
            f"{directory} holds {twice[0]}{f' and {len(twice) - 1} more' if len(twice) > 1 else ''} in several shards, "
            f"and no {INDEX} says which one counts: fetch the index too."
        )
    return {name: path for path, tensors in held.items() for name in tensors}


def _open(path: pathlib.Path) -> Any:
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} should be a whole safetensors file, but is cut off ({first_line(error)}): fetch it again."
        ) from None
