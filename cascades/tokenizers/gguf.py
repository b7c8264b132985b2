"""The tokenizer inside a GGUF file."""

import pathlib
from typing import Any

from gguf import TokenType

from cascades.checkpoints.gguf import read_header
from cascades.errors import UserError
from cascades.tokenizers import byte_level, gguf_keys, huggingface, sentencepiece, templates
from cascades.tokenizers.base import Tokenizer, end_of_turn_ids


def load(path: pathlib.Path) -> Tokenizer:
    """A tokenizer from a GGUF file's keys `tokenizer.*`; the file need not hold tensors.

    Ids at the end that only pad the table to the size of the logits are left out.

    Raises:
      UserError: not a GGUF file, no tokenizer or one of an unknown kind, or keys that are broken, unknown or missing.
    """
    table = gguf_keys.read(read_header(path).metadata, path)
    return (_byte_level if table["model"] == "gpt2" else _sentencepiece)(table, path)


def _byte_level(table: dict[str, Any], path: pathlib.Path) -> Tokenizer:
    pieces: list[str] = table["tokens"]
    kinds: list[int] = table["token_type"]
    rules = byte_level.pre_tokenizer(table["pre"])
    literal = (TokenType.CONTROL, TokenType.USER_DEFINED)
    control = {piece: i for i, (piece, kind) in enumerate(zip(pieces, kinds, strict=True)) if kind == TokenType.CONTROL}
    ids = frozenset(control.values())
    defined = [piece for piece, kind in zip(pieces, kinds, strict=True) if kind == TokenType.USER_DEFINED]
    fast = byte_level.build(pieces, table["merges"], rules, list(control), defined)
    bos_id, add_bos = gguf_keys.begin(table, control, rules.add_bos, path)
    chats, remarks = templates.without_empty(gguf_keys.templates(table), str(path))
    return Tokenizer(
        split=huggingface.splitter(fast),
        pieces=pieces,
        contents=[
            piece.encode() if kind in literal else byte_level.contents(piece)
            for piece, kind in zip(pieces, kinds, strict=True)
        ],
        control=ids,
        bos_id=bos_id,
        eos_ids=end_of_turn_ids(gguf_keys.ends(table, control, path), control, ids),
        add_bos=add_bos,
        end_id=table["eos_token_id"] if table.get("add_eos_token") else None,
        chat_template=chats.get(templates.DEFAULT),
        chat_templates=chats,
        special_tokens=_special_tokens(table, bos_id),
        remarks=remarks,
    )


def _sentencepiece(table: dict[str, Any], path: pathlib.Path) -> Tokenizer:
    pieces: list[str] = table["tokens"]
    kinds: list[int] = table["token_type"]
    unknown = table.get("unknown_token_id", -1)
    if not 0 <= unknown < len(pieces):
        if "<unk>" not in pieces:
            raise UserError(
                f"{path} should give scores and an unknown token for its SentencePiece tokenizer, but does not: "
                "take another copy."
            )
        unknown = pieces.index("<unk>")
    proto = sentencepiece.model_proto(
        pieces,
        [float(score) for score in table["scores"][: len(pieces)]],
        kinds,
        unknown_id=unknown,
        space_prefix=table["add_space_prefix"],
        squeeze_spaces=table.get("remove_extra_whitespaces", False),
    )
    control = {piece: i for i, (piece, kind) in enumerate(zip(pieces, kinds, strict=True)) if kind == TokenType.CONTROL}
    bos_id, add_bos = gguf_keys.begin(table, control, True, path)
    chats, remarks = templates.without_empty(gguf_keys.templates(table), str(path))
    return sentencepiece.build(
        proto,
        bos_id=bos_id,
        eos_ids=gguf_keys.ends(table, control, path),
        add_bos=add_bos,
        end_id=table["eos_token_id"] if table.get("add_eos_token") else None,
        source=str(path),
        chat_template=chats.get(templates.DEFAULT),
        chat_templates=chats,
        special_tokens=_special_tokens(table, bos_id),
        legacy=True,  # as in llama.cpp, a space before every part of a text
        remarks=remarks,
    )


def _special_tokens(table: dict[str, Any], bos_id: int | None) -> dict[str, str]:
    names = {"eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    ids = {"bos_token": bos_id} | {name: table.get(f"{key}_token_id") for key, name in names.items()}
    return {
        name: table["tokens"][index]
        for name, index in ids.items()
        if index is not None and 0 <= index < len(table["tokens"])
    }
