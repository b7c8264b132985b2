"""The tokenizer inside a GGUF file."""

import pathlib
from typing import Any

from gguf import TokenType

from cascades.checkpoints.gguf import read_header
from cascades.errors import UserError
from cascades.tokenizers import byte_level, huggingface, sentencepiece
from cascades.tokenizers.base import END_OF_TURN, Tokenizer, end_of_turn_ids

_KINDS = ("gpt2", "llama")


def load(path: pathlib.Path) -> Tokenizer:
    """A tokenizer from a GGUF file's keys `tokenizer.*`; the tensors are not read and need not be there.

    Ids at the end that only pad the table to the size of the logits are not counted.

    Raises:
      UserError: not a GGUF file, one without a tokenizer, or a tokenizer of a kind that is not known.
    """
    keys = read_header(path).metadata
    table = {key.removeprefix("tokenizer.ggml."): value for key, value in keys.items() if key.startswith("tokenizer.")}
    kind = table.get("model")
    if kind is None or "tokens" not in table:
        raise UserError(f"{path} should hold a tokenizer (key tokenizer.ggml.model), but has none: give another file.")
    if kind not in _KINDS:
        raise UserError(
            f"{path} should hold a tokenizer of kind {' or '.join(_KINDS)}, but tokenizer.ggml.model is {kind!r}: "
            "use a directory with the model's tokenizer.json instead."
        )
    pieces: list[str] = table["tokens"]
    kinds = [int(each) for each in table.get("token_type", [TokenType.NORMAL] * len(pieces))]
    if len(kinds) != len(pieces):
        raise UserError(
            f"{path} should name a type for each of its {len(pieces)} tokens, but names {len(kinds)}: fetch it again."
        )
    # Some converters took these for ordinary pieces: they would be printed, and no answer would end.
    kinds = [TokenType.CONTROL if piece in END_OF_TURN else kind for piece, kind in zip(pieces, kinds, strict=True)]
    while kinds and kinds[-1] == TokenType.UNUSED:
        kinds.pop()
    table["tokens"] = pieces[: len(kinds)]
    return (_byte_level if kind == "gpt2" else _sentencepiece)(table, kinds, path)


def _byte_level(table: dict[str, Any], kinds: list[int], path: pathlib.Path) -> Tokenizer:
    pieces: list[str] = table["tokens"]
    if "merges" not in table:
        raise UserError(
            f"{path} should list its tokenizer's merges (tokenizer.ggml.merges), but does not: take another copy."
        )
    rules = byte_level.scheme(table.get("pre", "default"))
    literal = (TokenType.CONTROL, TokenType.USER_DEFINED)
    control = frozenset(index for index, each in enumerate(kinds) if each == TokenType.CONTROL)
    defined = [piece for piece, each in zip(pieces, kinds, strict=True) if each == TokenType.USER_DEFINED]
    fast = byte_level.build(pieces, table["merges"], rules, [pieces[index] for index in sorted(control)], defined)
    ids = {piece: index for index, piece in enumerate(pieces)}
    return Tokenizer(
        split=huggingface.splitter(fast),
        pieces=pieces,
        contents=[
            piece.encode() if each in literal else byte_level.contents(piece)
            for piece, each in zip(pieces, kinds, strict=True)
        ],
        control=control,
        bos_id=table.get("bos_token_id"),
        eos_ids=end_of_turn_ids(_declared_eos(table), ids, control),
        add_bos=table.get("add_bos_token", rules.add_bos) and "bos_token_id" in table,
        end_id=table.get("eos_token_id") if table.get("add_eos_token") else None,
        chat_template=table.get("tokenizer.chat_template"),
        special_tokens=_special_tokens(table),
    )


def _sentencepiece(table: dict[str, Any], kinds: list[int], path: pathlib.Path) -> Tokenizer:
    pieces: list[str] = table["tokens"]
    unknown = table.get("unknown_token_id", pieces.index("<unk>") if "<unk>" in pieces else None)
    if "scores" not in table or unknown is None:
        raise UserError(
            f"{path} should give scores and an unknown token for its SentencePiece tokenizer, but does not: "
            "take another copy."
        )
    proto = sentencepiece.model_proto(
        pieces,
        [float(score) for score in table["scores"][: len(pieces)]],
        kinds,
        unknown_id=unknown,
        space_prefix=table.get("add_space_prefix", True),
        squeeze_spaces=table.get("remove_extra_whitespaces", False),
    )
    return sentencepiece.build(
        proto,
        bos_id=table.get("bos_token_id"),
        eos_ids=_declared_eos(table),
        add_bos=table.get("add_bos_token", True) and "bos_token_id" in table,
        end_id=table.get("eos_token_id") if table.get("add_eos_token") else None,
        source=str(path),
        chat_template=table.get("tokenizer.chat_template"),
        special_tokens=_special_tokens(table),
    )


def _declared_eos(table: dict[str, Any]) -> list[int | None]:
    return [table.get("eos_token_id"), table.get("eot_token_id")]


def _special_tokens(table: dict[str, Any]) -> dict[str, str]:
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    ids = {name: table.get(f"{key}_token_id") for key, name in names.items()}
    return {
        name: table["tokens"][index]
        for name, index in ids.items()
        if index is not None and index < len(table["tokens"])
    }
