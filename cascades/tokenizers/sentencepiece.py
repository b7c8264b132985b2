"""SentencePiece models: `.model` files, and the piece tables that GGUF files hold (Gemma, Llama 2, T5)."""

import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from cascades.errors import UserError
from cascades.tokenizers.base import END_OF_TURN, Tokenizer, end_of_turn_ids

protos: Any = sentencepiece_model_pb2  # its classes are made at run time, where no type checker sees them
ModelProto = Any
# Looked up once: protobuf's enumerations are slow, and a vocabulary asks hundreds of thousands of times.
_Kind = protos.ModelProto.SentencePiece.Type
_UNKNOWN, _CONTROL, _DEFINED, _BYTE = _Kind.UNKNOWN, _Kind.CONTROL, _Kind.USER_DEFINED, _Kind.BYTE
# Gemma's .model (and some GGUF files) call these user-defined, which would print them and find them in any text.
_CONTROL_NAME = re.compile(
    r"<(start_of_turn|mask|pad|bos|unused\d+|\|[^|<>]+\|)>|" + "|".join(map(re.escape, END_OF_TURN))
)


def load(path: pathlib.Path) -> Tokenizer:
    """A tokenizer from a `.model` file. BOS is put in front where the model has a BOS piece (Gemma, Llama 2); where it
    has none, EOS goes behind the text (T5).

    Raises:
      UserError: not a SentencePiece model.
    """
    proto = protos.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError:
        proto.Clear()
    if not proto.pieces:
        raise UserError(f"{path} should be a SentencePiece model, but it is not: give the model's tokenizer.model.")
    spec = proto.trainer_spec
    names = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    bos_id = names.get(spec.bos_piece) if spec.bos_id >= 0 else None
    eos_id = names.get(spec.eos_piece) if spec.eos_id >= 0 else None
    return build(
        proto,
        bos_id=bos_id,
        eos_ids=[eos_id],
        add_bos=bos_id is not None,
        end_id=eos_id if bos_id is None else None,
        source=str(path),
    )


def model_proto(
    pieces: Sequence[str],
    scores: Sequence[float],
    kinds: Sequence[int],
    *,
    unknown_id: int | None,
    space_prefix: bool,
    squeeze_spaces: bool = False,
) -> ModelProto:
    """A SentencePiece BPE model rebuilt from a GGUF file's table.

    GGUF numbers the kinds of pieces as SentencePiece does, but spells user-defined runs of spaces with spaces and calls
    the unknown piece a control token.
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
    special_tokens: Mapping[str, str] | None = None,
) -> Tokenizer:
    """A tokenizer around a model proto, which is changed: names of control tokens become control tokens, and the
    space before a text is put there by this module."""
    for piece in proto.pieces:
        if piece.type == _DEFINED and _CONTROL_NAME.fullmatch(piece.piece):
            piece.type = _CONTROL
    pieces = [piece.piece for piece in proto.pieces]
    names = {piece: index for index, piece in enumerate(pieces)}
    control = frozenset(i for i, piece in enumerate(proto.pieces) if piece.type in (_CONTROL, _UNKNOWN))
    space_prefix = proto.normalizer_spec.add_dummy_prefix
    # A text is cut at control tokens, and only its beginning takes the space. Where spaces are squeezed (T5), a space
    # put there by hand would not survive, and SentencePiece's own goes before every part.
    by_hand = space_prefix and not proto.normalizer_spec.remove_extra_whitespaces
    if by_hand:
        proto.normalizer_spec.add_dummy_prefix = False
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    except RuntimeError as error:
        raise UserError(
            f"the tokenizer in {source} should be a SentencePiece model, but is damaged ({error}): fetch it again."
        ) from error
    find = _finder({piece.piece: i for i, piece in enumerate(proto.pieces) if piece.type == _CONTROL})

    def split(text: str, special: bool) -> list[int]:
        parts = find(text) if special else [text]
        if by_hand and parts and isinstance(parts[0], str) and parts[0]:
            parts[0] = " " + parts[0]
        return [i for part in parts for i in ([part] if isinstance(part, int) else processor.encode(part))]

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
        special_tokens=special_tokens or {},
    )


def _contents(piece: Any) -> bytes:
    text, kind = piece.piece, piece.type
    if kind == _BYTE:
        return bytes([int(text[3:-1], 16)])
    return text.encode() if kind in (_CONTROL, _UNKNOWN) else text.replace("▁", " ").encode()


def _finder(tokens: Mapping[str, int]) -> Callable[[str], list[str | int]]:
    """Cuts a text at the names of control tokens: the longest name that fits at the earliest place.

    Gemma has thousands of them, too many for one regular expression to try at every character.
    """
    if not tokens:
        return lambda text: [text]
    starts = re.compile("[" + re.escape("".join(sorted({name[0] for name in tokens}))) + "]")
    lengths = sorted({len(name) for name in tokens}, reverse=True)

    def find(text: str) -> list[str | int]:
        parts: list[str | int] = []
        begin = end = 0
        while match := starts.search(text, end):
            at = match.start()
            name = next((text[at : at + n] for n in lengths if text[at : at + n] in tokens), None)
            if name is None:
                end = at + 1
                continue
            if at > begin:
                parts.append(text[begin:at])
            parts.append(tokens[name])
            begin = end = at + len(name)
        return [*parts, text[begin:]] if begin < len(text) else parts

    return find
