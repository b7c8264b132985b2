"""Byte-level BPE (GPT-2's scheme), as Llama 3, Qwen and SmolLM use it."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from cascades.errors import UserError

# How a text is cut into words before the merges, by the name in GGUF files. The merges were learned on words that were
# cut in this way; another cut yields tokens that the model has not seen. Sources: each family's tokenizer.json, and
# llama.cpp's llama-vocab.cpp for "default".
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_MODERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class PreTokenizer(NamedTuple):
    """How a text is cut into words.

    patterns: applied in order, each to the words of the one before. nfc: whether characters are composed first.
    ignore_merges: whether a word that is a piece is taken whole. add_bos: the family's default.
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False


_LLAMA3 = PreTokenizer((_MODERN.format(digits=r"\p{N}{1,3}"),), ignore_merges=True, add_bos=True)
PRE_TOKENIZERS = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2": PreTokenizer((_GPT2,)),
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": PreTokenizer((_MODERN.format(digits=r"\p{N}"),), nfc=True),
    "smollm": PreTokenizer((r"\p{N}", _GPT2)),
}


def pre_tokenizer(name: str) -> PreTokenizer:
    """The scheme of that name. Raises a UserError, which lists the known ones, if there is none."""
    if name not in PRE_TOKENIZERS:
        raise UserError(
            f"the tokenizer's pre-tokenizer should be one of {', '.join(sorted(PRE_TOKENIZERS))}, but the file says "
            f"{name!r}: use a directory with the model's tokenizer.json instead."
        )
    return PRE_TOKENIZERS[name]


def build(
    pieces: Sequence[str], merges: Sequence[str], rules: PreTokenizer, control: Sequence[str], defined: Sequence[str]
) -> Tokenizer:
    """A tokenizer from a piece table and merges ("a b" each, best first).

    Args:
      pieces: the piece of every id, with bytes spelled in GPT-2's alphabet.
      rules: how a text is cut into words.
      control: pieces that are control tokens.
      defined: ordinary pieces that are found in a text before any merge.

    Raises:
      UserError: a merge of pieces that are not in the table.
    """
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    try:
        model = models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=pairs,
            ignore_merges=rules.ignore_merges,
        )
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(
            f"the tokenizer's merges should be built of its pieces, but are not ({error}): fetch it again."
        ) from error
    tokenizer = Tokenizer(model)
    if rules.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in rules.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in control])
    tokenizer.add_tokens([AddedToken(piece, normalized=False, special=False) for piece in defined])
    return tokenizer


@functools.cache
def alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for every byte: character -> byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}


def contents(piece: str) -> bytes:
    """The bytes of a piece; a piece with characters outside the alphabet stands for itself, in UTF-8."""
    table = alphabet()
    try:
        return bytes(table[character] for character in piece)
    except KeyError:
        return piece.encode()
