"""SentencePiece models: `.model` files, and the piece tables that GGUF files hold (Gemma, Llama 2, T5)."""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from cascades.errors import UserError
from cascades.tokenizers import files
from cascades.tokenizers.base import END_OF_TURN, Tokenizer, end_of_turn_ids
from cascades.tokenizers.finder import Flags, finder
from cascades.tokenizers.templates import DEFAULT

protos: Any = sentencepiece_model_pb2  # its classes are made at run time, where no type checker sees them
ModelProto = Any
# Looked up once: protobuf's enumerations are slow, and a vocabulary has hundreds of thousands of pieces.
_Kind = protos.ModelProto.SentencePiece.Type
_NORMAL, _UNKNOWN, _CONTROL, _DEFINED = _Kind.NORMAL, _Kind.UNKNOWN, _Kind.CONTROL, _Kind.USER_DEFINED
_BYTE = _Kind.BYTE
# Gemma's .model and some GGUF files call these user-defined: they would be printed, and found in any text.
_CONTROL_NAME = re.compile(
    r"<(start_of_turn|mask|pad|bos|unused\d+|\|[^|<>]+\|)>|" + "|".join(map(re.escape, END_OF_TURN))
)
# T5's marks for gaps in a text. They are found like control tokens, but answers consist of them, so they print.
_SENTINEL = re.compile(r"<extra_id_\d+>")
_SENTINELS, _MOST_SENTINELS = 100, 10_000
_T5_TYPES = ("t5", "mt5", "umt5", "longt5", "switch_transformers")
# Classes of transformers that number pieces as the .model file does.
_CLASSES = (
    None, "CodeLlamaTokenizer", "GemmaTokenizer", "LlamaTokenizer", "MT5Tokenizer", "PreTrainedTokenizer",
    "T5Tokenizer", "TokenizersBackend",
)  # fmt: skip


def load(path: pathlib.Path, room: int | None = None) -> Tokenizer:
    """A tokenizer from a `.model` file and the settings in the files beside it.

    BOS goes before a text if the model has a BOS piece (Gemma, Llama 2) and no file says otherwise. If it has none, EOS
    goes behind a text (T5), and T5's sentinels `<extra_id_n>` follow the pieces, the last one first.

    Args:
      room: the number of logits, where it is known and no file beside says it.

    Raises:
      UserError: not a SentencePiece model, or a file that says what is not supported.
    """
    proto = _read(path)
    settings = files.read(path.parent)
    if settings.tokenizer_class not in _CLASSES:
        raise UserError(
            f"{path} is read by {settings.tokenizer_class} in transformers, which may number its pieces anew: "
            "use a directory with the model's tokenizer.json instead."
        )
    spec = proto.trainer_spec
    own = {  # the names in the proto, where no file gives any
        name: piece
        for name, piece, index in (
            ("bos_token", spec.bos_piece, spec.bos_id),
            ("eos_token", spec.eos_piece, spec.eos_id),
            ("unk_token", spec.unk_piece, spec.unk_id),
        )
        if index >= 0 and any(each.piece == piece for each in proto.pieces)
    }
    if "bos_token" not in own and "eos_token" in own:
        _add_sentinels(proto, _sentinels(proto, path, settings, room))
    pieces = [piece.piece for piece in proto.pieces]
    added = _added(settings, pieces, path)
    special_tokens = own | settings.special_tokens
    ids = {piece: index for index, piece in enumerate(pieces)}
    ids |= {token.content: index for index, token in added.items()}
    bos_id, eos_id = (ids.get(special_tokens.get(name, "")) for name in ("bos_token", "eos_token"))
    adds_bos = "bos_token" in own if settings.add_bos is None else settings.add_bos
    adds_eos = "bos_token" not in own or settings.add_eos
    if settings.prefix_space is not None:
        proto.normalizer_spec.add_dummy_prefix = settings.prefix_space
    return build(
        proto,
        bos_id=bos_id,
        eos_ids=[eos_id, *settings.eos_ids],
        add_bos=adds_bos and bos_id is not None,
        end_id=eos_id if adds_eos else None,
        source=str(path),
        chat_template=settings.chat_templates.get(DEFAULT),
        chat_templates=settings.chat_templates,
        special_tokens=special_tokens,
        added=added,
        legacy=settings.legacy,
        remarks=settings.remarks,
    )


def _read(path: pathlib.Path) -> ModelProto:
    """The model in a file.

    Raises:
      UserError: not a SentencePiece model, damaged, or with spaces behind words.
    """
    proto = protos.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
        spec = proto.trainer_spec
        texts = [*(piece.piece for piece in proto.pieces), spec.bos_piece, spec.eos_piece, spec.unk_piece]
    except (DecodeError, UnicodeDecodeError, OSError):
        proto.Clear()
        texts = []
    if not all(isinstance(text, str) for text in texts):  # protobuf returns bytes for a text that is not UTF-8
        raise UserError(f"{path} should name its pieces in UTF-8, but is damaged: fetch it again.")
    if not proto.pieces:
        raise UserError(f"{path} should be a SentencePiece model, but it is not: give the model's tokenizer.model.")
    if proto.trainer_spec.treat_whitespace_as_suffix:
        raise UserError(
            f"{path} puts spaces behind words (treat_whitespace_as_suffix), which is not supported: use a model of "
            "another family."
        )
    return proto


def _sentinels(proto: ModelProto, path: pathlib.Path, settings: files.TokenizerSettings, room: int | None) -> int:
    """The number of sentinels that follow the pieces.

    Zero if the pieces hold them (mT5), else what tokenizer_config.json says. Without it there are 100 for a file with
    the name of T5's or in the folder of a T5, if the model has room for them; and for any model with 128 logits more
    than pieces, which is more padding than models that are trained here have.
    """
    if any("<extra_id_" in piece.piece for piece in proto.pieces):
        return 0
    if settings.extra_ids is not None:
        return settings.extra_ids
    room = settings.vocab_size or room
    if path.name == "spiece.model" or (settings.model_type or "") in _T5_TYPES:
        return _SENTINELS if room is None or room >= len(proto.pieces) + _SENTINELS else 0
    return _SENTINELS if room is not None and room >= len(proto.pieces) + 128 else 0


def _add_sentinels(proto: ModelProto, count: int) -> None:
    """Adds sentinels behind the pieces, the last one first."""
    if count > _MOST_SENTINELS:
        raise UserError(
            f"a T5 should have at most {_MOST_SENTINELS} sentinels, but extra_ids is {count}: fetch it again."
        )
    for number in reversed(range(count)):
        proto.pieces.add(piece=f"<extra_id_{number}>", score=0.0, type=_CONTROL)


def _added(settings: files.TokenizerSettings, pieces: Sequence[str], path: pathlib.Path) -> dict[int, files.Added]:
    """Tokens of the JSON files by their ids: pieces with flags, and tokens that follow the pieces.

    Raises:
      UserError: an id of another piece, or a gap behind the pieces.
    """
    added, count = dict(settings.added), len(pieces)
    ids = {piece: index for index, piece in enumerate(pieces)}
    for token in settings.named:
        if token.content and all(token.content != each.content for each in added.values()):
            added[ids.get(token.content, max((count - 1, *added)) + 1)] = token
    behind = sorted(index for index in added if index >= count)
    for index, token in added.items():
        fits = index < count or (behind[index - count : index - count + 1] == [index] and token.content not in ids)
        if not fits or (index < count and pieces[index] != token.content):
            raise UserError(
                f"{path} has {count} pieces, and the files beside it give the id {index} to the token "
                f"{token.content!r:.80}, which is neither that piece nor the next one behind them: use another copy."
            )
    return added


def model_proto(
    pieces: Sequence[str],
    scores: Sequence[float],
    kinds: Sequence[int],
    *,
    unknown_id: int | None,
    space_prefix: bool,
    squeeze_spaces: bool = False,
) -> ModelProto:
    """A SentencePiece BPE model, rebuilt from a GGUF file's table.

    GGUF numbers the kinds of pieces as SentencePiece does, but spells user-defined runs of spaces with spaces and calls
    the unknown piece a control token.

    Args:
      space_prefix: whether a space goes before a text.
      squeeze_spaces: whether runs of spaces become one.
    """
    proto = protos.ModelProto()
    for index, (piece, score, kind) in enumerate(zip(pieces, scores, kinds, strict=True)):
        kind = _UNKNOWN if index == unknown_id else kind
        proto.pieces.add(piece=piece.replace(" ", "▁") if kind == _DEFINED else piece, score=score, type=kind)
    spec = proto.trainer_spec
    spec.model_type = protos.TrainerSpec.ModelType.BPE
    spec.vocab_size = len(pieces)
    spec.byte_fallback = bool(_BYTE in kinds)
    normalizer = proto.normalizer_spec
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = space_prefix
    normalizer.remove_extra_whitespaces = squeeze_spaces
    normalizer.escape_whitespaces = True
    return proto


def build(
    proto: ModelProto,
    *,
    bos_id: int | None,
    eos_ids: Sequence[int | None],
    add_bos: bool,
    end_id: int | None,
    source: str,
    chat_template: str | None = None,
    chat_templates: Mapping[str, str] | None = None,
    special_tokens: Mapping[str, str] | None = None,
    added: Mapping[int, files.Added] | None = None,
    legacy: bool = False,
    remarks: tuple[str, ...] = (),
) -> Tokenizer:
    """A tokenizer around a model proto.

    The proto is changed: pieces with the names of control tokens become control tokens, and the space before a text is
    put there by this module.

    Args:
      bos_id, add_bos, end_id, chat_template, chat_templates, special_tokens, remarks: as in `Tokenizer`.
      eos_ids: the declared ends of a turn; None counts for nothing.
      source: what messages call the file.
      added: tokens by their ids, of pieces or behind them, that are found in a text before SentencePiece sees it.
      legacy: whether the space goes before every part of a text between such tokens, not only before the first.

    Raises:
      UserError: SentencePiece refuses the proto.
    """
    added, count = added or {}, len(proto.pieces)
    for index, piece in enumerate(proto.pieces):
        named = piece.type == _DEFINED and _CONTROL_NAME.fullmatch(piece.piece)
        if named or (piece.type != _UNKNOWN and index in added and added[index].special):
            piece.type = _CONTROL
    for index in sorted(index for index in added if index >= count):
        # As control tokens, which SentencePiece never finds in a text.
        proto.pieces.add(piece=added[index].content, score=0.0, type=_CONTROL)
    pieces = [piece.piece for piece in proto.pieces]
    names = {piece: index for index, piece in enumerate(pieces)}
    plain = {index: token for index, token in added.items() if not token.special}
    literal = {index for index, piece in enumerate(proto.pieces) if piece.type == _CONTROL}
    printed = {index for index in literal if _SENTINEL.fullmatch(pieces[index]) or (index >= count and index in plain)}
    unknown = {index for index, piece in enumerate(proto.pieces) if piece.type == _UNKNOWN}
    control = frozenset((literal | unknown) - printed)
    space_prefix = proto.normalizer_spec.add_dummy_prefix
    # A text is cut at control tokens, and only some parts take the space. Where spaces are squeezed (T5), a space put
    # here would not survive, and SentencePiece's own goes before every part.
    by_hand = space_prefix and not proto.normalizer_spec.remove_extra_whitespaces
    if by_hand:
        proto.normalizer_spec.add_dummy_prefix = False
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    except RuntimeError as error:
        raise UserError(
            f"the tokenizer in {source} should be a SentencePiece model, but is damaged ({error}): fetch it again."
        ) from error
    flags = {each.content: Flags(each.lstrip, each.rstrip, each.single_word) for each in added.values()}
    always = {each.content: i for i, each in plain.items() if i >= count or proto.pieces[i].type == _NORMAL}
    special = {pieces[index]: index for index in literal | (unknown & added.keys())}
    find = {True: finder(special | always, flags), False: finder(always, flags)}

    def split(text: str, special: bool, hidden: Mapping[str, str] | None = None, /) -> list[int]:
        parts = find[special](text)
        ids: list[int] = []
        for at, part in enumerate(parts):
            if isinstance(part, int):
                ids.append(part)
                continue
            part = part.translate(str.maketrans(dict(hidden))) if hidden else part
            ids += processor.encode(" " + part if part and by_hand and (legacy or not at) else part)
        return ids

    return Tokenizer(
        split=split,
        pieces=pieces,
        contents=[_contents(piece) for piece in proto.pieces],
        control=control,
        bos_id=bos_id,
        eos_ids=end_of_turn_ids(eos_ids, names, control),
        add_bos=add_bos,
        end_id=end_id,
        strip_leading_space=space_prefix,
        chat_template=chat_template,
        chat_templates=chat_templates or {},
        special_tokens=special_tokens or {},
        remarks=remarks,
    )


def _contents(piece: Any) -> bytes:
    """The bytes of a piece of the proto."""
    text, kind = piece.piece, piece.type
    if kind == _BYTE:
        return bytes([int(text[3:-1], 16)])
    return text.encode() if kind in (_CONTROL, _UNKNOWN) else text.replace("▁", " ").encode()
