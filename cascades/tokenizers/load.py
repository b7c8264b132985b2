"""Loads the tokenizer of a model from any known kind of file."""

import json
import pathlib

from cascades.errors import UserError
from cascades.models import presets
from cascades.tokenizers import gguf, huggingface, sentencepiece
from cascades.tokenizers.base import Tokenizer


def load(path: str | pathlib.Path, preset: str | None = None, template: str | None = None) -> Tokenizer:
    """The tokenizer of a model.

    Args:
      path: a GGUF file, a SentencePiece `.model` file, or a directory that holds `tokenizer.json`, `tokenizer.gguf`,
        `tokenizer.model`, `spiece.model`, or `vocab.json` with `merges.txt` (in that order). A `tokenizer.model` beside
        the directory counts too, as in Gemma's released checkpoints.
      preset: the name of the model's preset. Without a `config.json`, the tokenizer must fit into its vocabulary.
      template: the name of the chat template to use, if a model has several.

    Raises:
      UserError: no tokenizer there, one that cannot be read or does not fit, or no such template.
    """
    path = pathlib.Path(path)
    room = presets.PRESETS[preset].vocab_size if preset in presets.PRESETS else None
    tokenizer = _load(path, room).using(template)
    has_config = (path / "config.json").is_file()  # then the model may have more tokens than the preset
    if room is not None and not has_config and tokenizer.vocab_size > room:
        raise UserError(
            f"the tokenizer at {path} should fit into the {room} tokens of preset {preset}, but has "
            f"{tokenizer.vocab_size}: name the preset that belongs to this checkpoint."
        )
    return tokenizer


def _load(path: pathlib.Path, room: int | None) -> Tokenizer:
    if path.is_dir():
        return _load_directory(path, room)
    if not path.exists():
        raise UserError(f"there is no tokenizer at {path}: give a GGUF file, a .model file or a model's directory.")
    if path.name == "tokenizer.json":
        return huggingface.load(path.parent)
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"GGUF" or path.suffix == ".gguf":
        return gguf.load(path)
    return sentencepiece.load(path, _room(path.parent) or room)


def _load_directory(directory: pathlib.Path, room: int | None) -> Tokenizer:
    if (directory / "tokenizer.json").exists():
        return huggingface.load(directory)
    if (directory / "tokenizer.gguf").exists():
        return gguf.load(directory / "tokenizer.gguf")
    for file in (directory / "tokenizer.model", directory / "spiece.model", directory.parent / "tokenizer.model"):
        if file.exists():
            return sentencepiece.load(file, _room(directory) or room)
    if (directory / "vocab.json").exists() and (directory / "merges.txt").exists():
        return huggingface.load(directory)
    raise UserError(
        f"{directory} should hold a tokenizer, but has no tokenizer.json, tokenizer.gguf, tokenizer.model or "
        "spiece.model: copy the model's tokenizer files into it."
    )


def _room(directory: pathlib.Path) -> int | None:
    """The vocabulary size in `cascades.json`; None if there is none."""
    try:
        size = json.loads((directory / "cascades.json").read_text(encoding="utf-8"))["config"]["vocab_size"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # loading the checkpoint says what is wrong
    return size if type(size) is int else None
