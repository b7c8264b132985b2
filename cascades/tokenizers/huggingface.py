"""Directories with a Hugging Face `tokenizer.json`."""

import functools
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import tokenizers

from cascades.errors import UserError
from cascades.tokenizers import byte_level
from cascades.tokenizers.base import Tokenizer, end_of_turn_ids

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def load(directory: pathlib.Path) -> Tokenizer:
    """A tokenizer from `tokenizer.json`, and what the files beside it say of special tokens and the chat template.

    Raises:
      UserError: a file that is broken, or pieces spelled in a way that is not known.
    """
    path = directory / "tokenizer.json"
    try:
        fast = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(
            f"{path} should be a Hugging Face tokenizer, but cannot be read ({error}): fetch it again."
        ) from error
    fast.no_truncation()
    fast.no_padding()
    ids = fast.get_vocab(with_added_tokens=True)
    pieces = [""] * (max(ids.values()) + 1)
    for piece, index in ids.items():
        pieces[index] = piece
    added = fast.get_added_tokens_decoder()
    control = frozenset(index for index, token in added.items() if token.special)
    spelled, strip_leading_space = _spelling(fast, path)
    literal = added if spelled is byte_level.contents else control
    contents = [piece.encode() if index in literal else spelled(piece) for index, piece in enumerate(pieces)]

    config = read_config(directory)
    special_tokens = config.special_tokens
    bos_id = ids.get(special_tokens.get("bos_token", ""))
    eos_id = ids.get(special_tokens.get("eos_token", ""))
    around = fast.encode("").ids  # what the file itself puts around a text
    add_bos = config.add_bos if config.add_bos is not None else bos_id in around
    add_eos = config.add_eos if config.add_eos is not None else eos_id != bos_id and eos_id in around
    return Tokenizer(
        split=splitter(fast),
        pieces=pieces,
        contents=contents,
        control=control,
        bos_id=bos_id,
        eos_ids=end_of_turn_ids([eos_id, *config.eos_ids], ids, control),
        add_bos=bool(add_bos) and bos_id is not None,
        end_id=eos_id if add_eos else None,
        strip_leading_space=strip_leading_space,
        chat_template=config.chat_template,
        special_tokens=special_tokens,
    )


def splitter(fast: tokenizers.Tokenizer) -> Callable[[str, bool], list[int]]:
    """`Tokenizer.split` around a `tokenizers.Tokenizer`. Added tokens that are not control tokens are always found."""

    @functools.cache
    def plain() -> tokenizers.Tokenizer:
        # The switch belongs to the whole object, which other threads may be using: turn it in a copy.
        copy = tokenizers.Tokenizer.from_str(fast.to_str())
        copy.encode_special_tokens = True
        return copy

    return lambda text, special: (fast if special else plain()).encode(text, add_special_tokens=False).ids


def _spelling(fast: tokenizers.Tokenizer, path: pathlib.Path) -> tuple[Callable[[str], bytes], bool]:
    """How the pieces spell bytes, and whether a space is put before the text; both as the file's decoder tells."""
    decoder: dict[str, Any] = json.loads(fast.to_str())["decoder"] or {"type": None}
    steps: list[dict[str, Any]] = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    by_type = {step["type"]: step for step in steps}
    if "ByteLevel" in by_type:
        return byte_level.contents, False
    if "Metaspace" in by_type:
        return _sentencepiece, by_type["Metaspace"].get("prepend_scheme", "always") != "never"
    if "Replace" in by_type and "▁" in by_type["Replace"]["pattern"].values():
        return _sentencepiece, "Strip" in by_type
    raise UserError(
        f"{path} should decode byte-level or SentencePiece pieces (decoder ByteLevel, Metaspace or Replace), "
        f"but its decoder is {' + '.join(map(str, by_type))}: use a model of another family."
    )


def _sentencepiece(piece: str) -> bytes:
    byte = _BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()


class Config:
    """What the JSON files beside a tokenizer say.

    special_tokens: `bos_token`, `eos_token`, …, as text. eos_ids: from generation_config.json and config.json.
    add_bos, add_eos: None where tokenizer_config.json does not say.
    """

    def __init__(self, files: dict[str, dict[str, Any]], chat_template: str | None):
        tokens = files["special_tokens_map.json"] | files["tokenizer_config.json"]
        texts = {key: _token_text(value) for key, value in tokens.items() if key.endswith("_token")}
        self.special_tokens = {key: text for key, text in texts.items() if text is not None}
        self.eos_ids: list[int] = []
        for name in ("generation_config.json", "config.json"):
            ids = files[name].get("eos_token_id")
            self.eos_ids += ids if isinstance(ids, list) else [] if ids is None else [ids]
        self.add_bos: bool | None = files["tokenizer_config.json"].get("add_bos_token")
        self.add_eos: bool | None = files["tokenizer_config.json"].get("add_eos_token")
        self.chat_template = chat_template


def read_config(directory: pathlib.Path) -> Config:
    """The configuration files of a directory; missing ones count as empty."""
    names = ("special_tokens_map.json", "tokenizer_config.json", "generation_config.json", "config.json")
    files = {name: _read_json(directory / name) for name in names}
    template = directory / "chat_template.jinja"
    if template.exists():
        return Config(files, template.read_text(encoding="utf-8"))
    source = files["tokenizer_config.json"].get("chat_template")
    if source is None:
        source = _read_json(directory / "chat_template.json").get("chat_template")
    if isinstance(source, list):  # several, by name
        source = {entry["name"]: entry["template"] for entry in source}.get("default")
    return Config(files, source)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} should be JSON, but is not ({error}): fetch it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} should hold a JSON object, but holds a {type(content).__name__}: fetch it again.")
    return content


def _token_text(value: Any) -> str | None:
    return value.get("content") if isinstance(value, dict) else value if isinstance(value, str) else None
