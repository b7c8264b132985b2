"""What a checkpoint holds, and what `load` would refuse, from its headers alone: no weights are read."""

import contextlib
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from cascades.checkpoints import gemma, gguf, orbax, safetensors, sources, t5x
from cascades.checkpoints.load import descend, format_of, open_reader, read_config
from cascades.checkpoints.reader import Stored, check_tensors
from cascades.checkpoints.sources import AnyPath
from cascades.errors import UserError
from cascades.models import Config, count_params

FORMATS = {
    orbax: "cascades (orbax)",
    gguf: "GGUF",
    safetensors: "Hugging Face (safetensors)",
    t5x: "T5X",
    gemma: "released Gemma (orbax)",
}
# int32 is the type of `head_ids`, the tokens that a drafter's head scores.
_PLAIN_DTYPES = {"f64", "f32", "f16", "bf16", "float64", "float32", "float16", "bfloat16", "int32"}


class Problem(NamedTuple):
    """Why `load` would refuse a checkpoint. part: the part that is wrong: file, config, tensors or tokenizer."""

    part: str
    reason: str


class Contents(NamedTuple):
    """A checkpoint without its weights.

    path: where the weights lie; None if there are none. tokenizer: where to look for its tokenizer.
    form: the name of its format. size: bytes of its files; None in a bucket. tensors: those of the files, by name.
    config: the architecture; None if it cannot be read. parameters: their number; None unless the tensors fit `config`.
    shared: names of the parameters that a drafter takes from its verifier.
    problems: what `load` would refuse.
    """

    path: AnyPath | None
    tokenizer: pathlib.Path | None
    form: str | None
    size: int | None
    tensors: Mapping[str, Stored]
    config: Config | None
    parameters: int | None
    shared: tuple[str, ...]
    problems: tuple[Problem, ...]

    @property
    def kinds(self) -> dict[str, int]:
        """The number of weights of each type, the most frequent type first."""
        counts: dict[str, int] = {}
        for shape, kind in self.tensors.values():
            counts[kind] = counts.get(kind, 0) + math.prod(shape)
        return dict(sorted(counts.items(), key=lambda item: -item[1]))

    @property
    def quantised(self) -> tuple[str, ...]:
        """The types that are not plain numbers, the most frequent first."""
        return tuple(kind for kind in self.kinds if kind.lower() not in _PLAIN_DTYPES)


class Attempts:
    """Calls functions that may raise a UserError, and keeps each reason once. known: problems from before."""

    def __init__(self, known: Iterable[Problem] = ()):
        self.problems = list(known)

    def __call__(self, part: str, function: Callable[[], Any], default: Any = None) -> Any:
        """The result of `function`, or `default` if it raises a UserError."""
        try:
            return function()
        except UserError as error:
            # A header that cannot be read fails every later step with the same sentence.
            if all(str(error) != problem.reason for problem in self.problems):
                self.problems.append(Problem(part, str(error)))
            return default


def contents(uri: str | os.PathLike, preset: str | None = None) -> Contents:
    """Opens a checkpoint as `load` does, but lists what is wrong with it instead of raising.

    Args:
      uri, preset: as in `load`.
    """
    attempt = Attempts()
    root = attempt("file", lambda: sources.resolve(uri))
    path = None if root is None else attempt("file", lambda: descend(root))
    if path is None:
        tokenizer = root if isinstance(root, pathlib.Path) else None
        return Contents(None, tokenizer, None, None, {}, None, None, (), tuple(attempt.problems))
    form = format_of(path)
    tensors = attempt("file", lambda: form.stored(path), {})
    shared: tuple[str, ...] = ()
    if form is orbax:
        config = attempt("config", lambda: read_config(path))
        shared = attempt("file", lambda: orbax.shared(path), ())
        attempt("file", lambda: orbax.check_whole(path))
        if config is not None:
            attempt("tensors", lambda: orbax.check_tensors(path, config))
    else:
        config = _foreign(attempt, path, preset, tensors)
    # A config that the tensors do not confirm may claim any size, too large to count.
    parameters = None if config is None or attempt.problems else count_params(config)
    tokenizer = attempt("tokenizer", lambda: sources.tokenizer_directory(path))
    known = FORMATS[form], _size(path), tensors, config, parameters, shared
    return Contents(path, tokenizer, *known, tuple(attempt.problems))


def _foreign(attempt: Attempts, path: AnyPath, preset: str | None, tensors: Mapping[str, Stored]) -> Config | None:
    """The architecture of a checkpoint in a format of others. If it does not open as a whole, its parts are tried."""
    with contextlib.suppress(UserError):
        reader = open_reader(path, preset)
        check_tensors(reader)
        return reader.config
    config = attempt("config", lambda: read_config(path, preset))
    if config is not None:
        attempt("tensors", lambda: check_tensors(open_reader(path, preset)))
    if format_of(path) is gguf and tensors:
        attempt("tensors", lambda: gguf.check_types(gguf.read_parts(pathlib.Path(path))))
    return config


def _size(path: AnyPath) -> int | None:
    if not isinstance(path, pathlib.Path):
        return None
    files = sources.parts_of(path) if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())
