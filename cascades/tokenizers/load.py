"""Finds the tokenizer of a model, whatever its files look like."""

import pathlib

from cascades.errors import UserError
from cascades.models import presets
from cascades.tokenizers import gguf, huggingface, sentencepiece
from cascades.tokenizers.base import Tokenizer


def load(path: str | pathlib.Path, preset: str | None = None) -> Tokenizer:
    """The tokenizer of a model.

    Args:
      path: a GGUF file, a SentencePiece `.model` file, or a directory that holds `tokenizer.json`, `tokenizer.gguf`,
        `tokenizer.model` or `spiece.model` (tried in that order). Gemma's released checkpoints keep `tokenizer.model`
        beside the checkpoint's directory: it is found there too.
      preset: where given, the tokenizer must fit into the vocabulary of the model of that name.

    Raises:
      UserError: nothing there, no tokenizer there, or one that cannot be read or does not fit.
    """
    tokenizer = _load(pathlib.Path(path))
    logits = presets.PRESETS[preset].vocab_size if preset in presets.PRESETS else tokenizer.vocab_size
    if tokenizer.vocab_size > logits:
        raise UserError(
            f"the tokenizer at {path} should fit into the {logits} tokens of preset {preset}, but has "
            f"{tokenizer.vocab_size}: name the preset that belongs to this checkpoint."
        )
    return tokenizer


def _load(path: pathlib.Path) -> Tokenizer:
    if path.is_dir():
        return _load_directory(path)
    if not path.exists():
        raise UserError(f"there is no tokenizer at {path}: give a GGUF file, a .model file or a model's directory.")
    if path.name == "tokenizer.json":
        return huggingface.load(path.parent)
    with path.open("rb") as file:
        magic = file.read(4)
    return gguf.load(path) if magic == b"GGUF" or path.suffix == ".gguf" else sentencepiece.load(path)


def _load_directory(directory: pathlib.Path) -> Tokenizer:
    if (directory / "tokenizer.json").exists():
        return huggingface.load(directory)
    if (directory / "tokenizer.gguf").exists():
        return gguf.load(directory / "tokenizer.gguf")
    for file in (directory / "tokenizer.model", directory / "spiece.model", directory.parent / "tokenizer.model"):
        if file.exists():
            return sentencepiece.load(file)
    raise UserError(
        f"{directory} should hold a tokenizer, but has no tokenizer.json, tokenizer.gguf, tokenizer.model or "
        "spiece.model: copy the model's tokenizer files into it."
    )
