"""Every key with which a GGUF file describes its tokenizer: read, known to change nothing, or refused by name.

A missing key is inferred if the rest of the file leaves no doubt, and refused otherwise; llama.cpp guesses, and may
give other tokens without a warning. Sources: llama.cpp's llama-vocab.cpp, `gguf.constants.Keys.Tokenizer`, and the keys
that Ollama's converter writes.
"""

import collections
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gguf import TokenType

from cascades.checkpoints.gguf_keys import FLAG, TEXT, Kind, expect
from cascades.errors import UserError
from cascades.tokenizers import byte_level
from cascades.tokenizers.base import END_OF_TURN

KINDS = ("gpt2", "llama")
_PREFIX = "tokenizer.ggml."
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
_END_LISTS = ("eos_token_ids", "eog_token_ids")
_ID = Kind("the id of a token", lambda value: type(value) is int)
_STRINGS = Kind("a list of texts", lambda value: isinstance(value, list))
_INTEGERS = Kind("a list of whole numbers", lambda value: isinstance(value, np.ndarray) and value.dtype.kind in "iu")
_NUMBERS = Kind(
    "a list of numbers",
    lambda value: isinstance(value, np.ndarray) and value.dtype.kind in "iuf" and bool(np.all(np.isfinite(value))),
)

_READ: dict[str, Kind] = (
    {"model": TEXT, "pre": TEXT, "tokens": _STRINGS, "merges": _STRINGS, "scores": _NUMBERS, "token_type": _INTEGERS}
    | dict.fromkeys(("bos_token_id", "unknown_token_id", "padding_token_id", *_ENDS), _ID)
    | dict.fromkeys(_END_LISTS, _INTEGERS)
    | dict.fromkeys(("add_bos_token", "add_eos_token", "add_space_prefix", "remove_extra_whitespaces"), FLAG)
    | {"tokenizer.chat_template": TEXT, "tokenizer.chat_templates": _STRINGS}
)
# Keys that change nothing here, whatever their value: tokens that no prompt uses, a copy of the tokenizer in another
# format, and the number of kinds of sentences (BERT).
_HARMLESS = re.compile(
    r"(fim_(pre|suf|mid|pad|rep|sep)|prefix|suffix|middle|mask|cls|sep[ae]rator)_token_id|token_type_count"
    r"|tokenizer\.huggingface\.json"
)
_TAG = re.compile(r"<.+>|\[.+\]")
_CONTROL_TAG = re.compile(r"<\|.+\|>")
_PADDING = re.compile(r"\[PAD\d+\]")  # how converters fill the table up to the size of the logits
_NO_TOKEN = (-1, 2**32 - 1)
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def read(metadata: Mapping[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """The checked keys of the tokenizer, without `tokenizer.ggml.` before them.

    `pre` and `token_type` are inferred if they are missing; ids that mean "none" are left out; `tokens` and
    `token_type` end before the ids that only pad the table.

    Raises:
      UserError: no tokenizer or one of an unknown kind, or a key that is missing, of the wrong type or unknown.
    """
    table = {key.removeprefix(_PREFIX): value for key, value in metadata.items() if key.startswith("tokenizer.")}
    if "model" not in table or "tokens" not in table:
        raise UserError(f"{path} should hold a tokenizer (key tokenizer.ggml.model), but has none: give another file.")
    if not isinstance(table["model"], str) or table["model"] not in KINDS:
        raise UserError(
            f"{path} should hold a tokenizer of kind {' or '.join(KINDS)}, but tokenizer.ggml.model is "
            f"{table['model']!r:.60}: use a directory with the model's tokenizer.json instead."
        )
    for key, value in table.items():
        _check(key, value, table, path)
    table = {key: value for key, value in table.items() if not (_READ.get(key) is _ID and value in _NO_TOKEN)}
    architecture = metadata.get("general.architecture")
    if table["model"] == "gpt2":
        if "merges" not in table:
            raise UserError(
                f"{path} should list its tokenizer's merges (tokenizer.ggml.merges), but does not: take another copy."
            )
        table = {"pre": _infer_scheme(architecture, table["tokens"], path)} | table if "pre" not in table else table
    else:
        # Gemma's older files lack the key, and Gemma never takes the space.
        table.setdefault("add_space_prefix", not str(architecture).startswith("gemma"))
        _check_scores(table, path)
    kinds = _kinds(table, path)
    while kinds and kinds[-1] == TokenType.UNUSED:
        kinds.pop()
    table["tokens"] = table["tokens"][: len(kinds)]
    return table | {"token_type": kinds}


def ends(table: Mapping[str, Any], control: Mapping[str, int], path: pathlib.Path) -> list[int]:
    """The ids that the file declares as ends of a turn, without those beyond the vocabulary.

    Args:
      table: as `read` returns it.
      control: ids of the control tokens by piece.

    Raises:
      UserError: all declared ids are beyond the vocabulary and no other end is known, or the file asks for EOS behind a
        text and has none.
    """
    declared = [table[key] for key in _ENDS if key in table]
    for key in _END_LISTS:
        declared += [int(each) for each in table.get(key, ())]
    ids = [each for each in declared if 0 <= each < len(table["tokens"])]
    if table.get("add_eos_token") and table.get("eos_token_id") not in ids:
        raise _no_token("eos_token_id", table, path)
    if declared and not ids and not control.keys() & set(END_OF_TURN):
        raise _no_token(next(key for key in (*_ENDS, *_END_LISTS) if key in table), table, path)
    if not declared and table["model"] == "llama" and "</s>" in control:
        return [control["</s>"]]  # llama.cpp's default is its id in Llama's table
    return ids


def begin(
    table: Mapping[str, Any], control: Mapping[str, int], default: bool, path: pathlib.Path
) -> tuple[int | None, bool]:
    """The id of the begin-of-text token, and whether it goes before a text.

    Args:
      table: as `read` returns it.
      control: ids of the control tokens by piece.
      default: whether this kind of tokenizer puts it there if the file does not say.

    Raises:
      UserError: the token is needed and not declared, or declared beyond the vocabulary.
    """
    wanted = table.get("add_bos_token", default)
    known = next((control[name] for name in ("<s>", "<bos>", "<|begin_of_text|>") if name in control), None)
    bos_id = table.get("bos_token_id", known if wanted else None)
    if (wanted and bos_id is None) or (bos_id is not None and not 0 <= bos_id < len(table["tokens"])):
        raise _no_token("bos_token_id", table, path)
    return bos_id, wanted


def templates(table: Mapping[str, Any]) -> dict[str, str]:
    """Every chat template by name; the one without a name is called `default`."""
    start = "tokenizer.chat_template."
    named = {key.removeprefix(start): value for key, value in table.items() if key.startswith(start)}
    default = table.get("tokenizer.chat_template")
    return named if default is None else {"default": default} | named


def _check(key: str, value: Any, table: Mapping[str, Any], path: pathlib.Path) -> None:
    """Raises a UserError for a key that is of the wrong type, or that is unknown and says something."""
    name = key if key.startswith("tokenizer.") else f"{_PREFIX}{key}"
    named_template = key.startswith("tokenizer.chat_template.")
    if key in _READ or named_template:
        expect(name, value, TEXT if named_template else _READ[key], str(path))
    # Byte-level tokenizers squeeze no spaces, and as in llama.cpp put none before a text.
    squeezed = table["model"] == "gpt2" and key == "remove_extra_whitespaces"
    known = (key in _READ and not squeezed) or named_template or _HARMLESS.fullmatch(key)
    # The list of tokens that were added later says nothing that the types do not say.
    listed = key == "added_tokens" and isinstance(value, list) and set(value) <= set(table["tokens"])
    if not (known or listed or not (np.any(value) if isinstance(value, np.ndarray) else value)):
        shown = f"an array of {len(value)}" if isinstance(value, list | np.ndarray) else f"{value!r:.60}"
        raise UserError(
            f"{path} asks for {name} = {shown}, which would change the tokens and is not supported: use a directory "
            "with the model's tokenizer.json instead."
        )


def _check_scores(table: Mapping[str, Any], path: pathlib.Path) -> None:
    """Raises a UserError unless every piece of a SentencePiece table has a score: scores order the merges."""
    scores, pieces = table.get("scores"), table["tokens"]
    if scores is None:
        raise UserError(
            f"{path} should give scores and an unknown token for its SentencePiece tokenizer, but does not: "
            "take another copy."
        )
    if len(scores) != len(pieces):
        raise UserError(
            f"{path} should give a score for each of its {len(pieces)} tokens, but gives {len(scores)}: fetch it again."
        )


def _infer_scheme(architecture: Any, pieces: Sequence[str], path: pathlib.Path) -> str:
    """How words are cut, for files older than `tokenizer.ggml.pre`: by an architecture or tokens of one family alone.

    llama.cpp takes `default`, with which no model here was trained.
    """
    if architecture == "qwen2":
        return "qwen2"
    names = set(pieces)
    if architecture == "llama" and "<|begin_of_text|>" in names and names & {"<|end_of_text|>", "<|eot_id|>"}:
        return "llama-bpe"
    if architecture == "llama" and {"<repo_name>", "<jupyter_start>", "<|endoftext|>"} <= names:
        return "smollm"
    raise UserError(
        f"{path} should say how its tokenizer cuts a text into words (tokenizer.ggml.pre), but does not, and its "
        "tokens do not tell: convert it again, or use a directory with the model's tokenizer.json."
    )


def _kinds(table: Mapping[str, Any], path: pathlib.Path) -> list[int]:
    """The type of every token, a number of `gguf.TokenType`: declared or inferred, and mended for ends of a turn."""
    pieces: list[str] = table["tokens"]
    declared = table.get("token_type")
    kinds = _infer_kinds(table, path) if declared is None else declared.tolist()
    if len(kinds) != len(pieces):
        raise UserError(
            f"{path} should name a type for each of its {len(pieces)} tokens, but names {len(kinds)}: fetch it again."
        )
    unknown = sorted(set(kinds) - {int(each) for each in TokenType})
    if unknown:
        raise UserError(
            f"{path} should name types of tokens from 1 to 6 (tokenizer.ggml.token_type), but names {unknown[0]}: "
            "fetch it again."
        )
    # Some converters call these ordinary pieces: they would be printed, and no answer would end.
    special = {table.get(key) for key in ("bos_token_id", *_ENDS)}
    kinds = [
        TokenType.CONTROL if piece in END_OF_TURN or (index in special and _TAG.fullmatch(piece)) else kind
        for index, (piece, kind) in enumerate(zip(pieces, kinds, strict=True))
    ]
    _check_pieces(pieces, kinds, table["model"], path)
    return kinds


def _infer_kinds(table: Mapping[str, Any], path: pathlib.Path) -> list[int]:
    """The types of a byte-level table without any: a piece that is no byte and no merge's result was added, and its
    spelling tells as what.

    llama.cpp takes all for ordinary pieces, and finds no control token in a prompt.
    """
    if table["model"] != "gpt2":
        raise UserError(
            f"{path} should name the types of its tokens (tokenizer.ggml.token_type), but does not: convert it again."
        )
    ordinary = set(byte_level.alphabet()) | {merge.replace(" ", "", 1) for merge in table["merges"]}
    whole_words = byte_level.pre_tokenizer(table["pre"]).ignore_merges  # then a piece need not be a merge's result
    kinds: list[int] = []
    for piece in table["tokens"]:
        if piece in ordinary:
            kinds.append(TokenType.NORMAL)
        elif _PADDING.fullmatch(piece):
            kinds.append(TokenType.UNUSED)
        elif _CONTROL_TAG.fullmatch(piece):
            kinds.append(TokenType.CONTROL)
        elif _TAG.fullmatch(piece):
            kinds.append(TokenType.USER_DEFINED)
        elif whole_words:
            kinds.append(TokenType.NORMAL)
        else:
            raise UserError(
                f"{path} should name the types of its tokens (tokenizer.ggml.token_type), but does not, and that of "
                f"{piece!r:.40} cannot be told: convert it again."
            )
    return kinds


def _check_pieces(pieces: Sequence[str], kinds: Sequence[int], model: str, path: pathlib.Path) -> None:
    """Raises a UserError for a piece that stands twice, or a byte that is not spelled as one."""
    named = [piece for piece in pieces if piece]
    wrong = [piece for piece, count in collections.Counter(named).items() if count > 1]
    if model == "llama":
        wrong += [
            pieces[i] for i, kind in enumerate(kinds) if kind == TokenType.BYTE and not _BYTE.fullmatch(pieces[i])
        ]
    if wrong:
        raise UserError(
            f"{path} should name each of its tokens once, and bytes as <0x0A>, but is damaged ({wrong[0]!r:.40}): "
            "fetch it again."
        )


def _no_token(key: str, table: Mapping[str, Any], path: pathlib.Path) -> UserError:
    value = table.get(key, "missing")
    return UserError(
        f"{path} should give {_PREFIX}{key} below its {len(table['tokens'])} tokens, but one is {value!s:.40}: use "
        "another copy of the model."
    )
