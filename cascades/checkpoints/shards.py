"""Which `*.safetensors` of a directory hold its model, and in which of them each tensor lies.

An index says it tensor by tensor: a copy that another shard still holds is not the model's. Only files that lie in the
directory by their own names are opened.
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
# Files that lie beside a model and are none: adapters, a trainer's state, the same weights under other names.
_BESIDE = re.compile(r"(adapter|lora|pytorch_lora|consolidated|optimizer|optim|scheduler|scaler|random_state|rng_state|"
                     r"training_|ema[._-]|value_head|v_head)")  # fmt: skip
_ADAPTER = re.compile(r"adapter|lora")


class Shards:
    """The opened files of a model.

    files: by their paths, as `safe_open` gives them. where: for each tensor of the model the path of its file.
    """

    def __init__(self, directory: pathlib.Path):
        """Opens them.

        Raises:
          UserError: no weights or several models' weights, a file that is missing, cut off or lacks a tensor, or a name
            in the index that is none of a file in the directory.
        """
        assigned = _weight_map(directory)
        self.files = {path: _open(path) for path in _chosen(directory, assigned)}
        held = {path: set(file.keys()) for path, file in self.files.items()}  # noqa: SIM118 - not a dict
        where = _named_once(directory, held) if assigned is None else _assigned(directory, assigned, held)
        self.where = dict(sorted(where.items()))

    def tensor(self, name: str) -> Any:
        """The slice of a tensor, of which nothing is read yet."""
        return self.files[self.where[name]].get_slice(name)


def files_of(directory: pathlib.Path) -> list[pathlib.Path]:
    """The files of a directory's model.

    Raises:
      UserError: none, or more than one model's.
    """
    return _chosen(directory, _weight_map(directory))


def _chosen(directory: pathlib.Path, assigned: Mapping[str, str] | None) -> list[pathlib.Path]:
    """An index holds whatever lies beside it, a `model.safetensors` of an earlier state too."""
    return _unindexed(directory) if assigned is None else _indexed(directory, assigned)


def _weight_map(directory: pathlib.Path) -> dict[str, str] | None:
    """From tensors to the names of files; None without an index.

    Raises:
      UserError: none, not from texts to texts, or a name that leads elsewhere: a path is refused by its form, since
        the files of the hub's cache are links out of the directory.
    """
    index = directory / INDEX
    if not index.exists():
        return None
    given = read_object(index).get("weight_map")
    if not isinstance(given, dict) or not given or not all(isinstance(file, str) for file in given.values()):
        raise UserError(f"{index} should give weight_map, the file of every tensor, but does not: fetch it again.")
    for file in set(given.values()):
        if not re.fullmatch(r"[^/\\:\0]{1,200}\.safetensors", file):
            raise UserError(
                f"{index} should name *.safetensors beside it, but weight_map has {file[:100]!r}: correct the file."
            )
    return given


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
    """`model.safetensors` alone, the only other model, or all shards of one."""
    if (directory / WHOLE).is_file():
        return [directory / WHOLE]
    there = sorted(path for path in directory.glob("*.safetensors") if path.is_file())
    candidates = [path for path in there if not _BESIDE.match(path.name)]
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
    if not candidates and any(_ADAPTER.match(path.name) for path in there):
        raise UserError(
            f"{directory} holds an adapter ({there[0].name}) without the model that it changes: merge the two "
            "and give the result."
        )
    names_of = ", ".join(path.name for path in there[:8]) or "none"
    raise UserError(
        f"{directory} should hold one model as {WHOLE}, or shards and their {INDEX}, but of *.safetensors it holds "
        f"{names_of}: leave the files of one model."
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
