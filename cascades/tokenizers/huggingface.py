"""Directories with a Hugging Face `tokenizer.json`, or with GPT-2's `vocab.json` and `merges.txt`."""

import contextlib
import functools
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tokenizers

from cascades.errors import UserError
from cascades.tokenizers import byte_level, files
from cascades.tokenizers.base import Split, Tokenizer, end_of_turn_ids
from cascades.tokenizers.templates import DEFAULT

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# T5's marks for gaps in a text: an answer is made of them, so they print.
_SENTINEL = re.compile(r"<extra_id_\d+>")
# Fields of tokenizer.json. The first three are undone or not needed; the package `tokenizers` follows the others.
_FIELDS = ("version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor",
           "decoder", "model")  # fmt: skip
_NO_MODEL_FIELDS = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
# Steps of decoders that `_spelling` knows, with the settings that they must have.
_DECODERS: dict[str, dict[str, Any]] = {
    "ByteLevel": {},
    "ByteFallback": {},
    "Fuse": {},
    "Metaspace": {"replacement": "▁"},
    "Replace": {"pattern": {"String": "▁"}, "content": " "},
    "Strip": {"content": " ", "start": 1, "stop": 0},
}
_PRE_TOKENIZERS = {"Qwen2Tokenizer": "qwen2", "GPT2Tokenizer": "gpt-2"}  # by the classes of transformers
_MOST_GAPS = 10_000  # ids without a piece


def load(directory: pathlib.Path) -> Tokenizer:
    """A tokenizer from `tokenizer.json`, or GPT-2's two files, and the settings in the files beside it.

    If the files contradict each other, it is as transformers reads them: special tokens go around a text as
    tokenizer.json says, whatever tokenizer_config.json asks for, and tokens that only another file names are added.

    Raises:
      UserError: a file that is broken or says what is not supported, or pieces in an unknown spelling.
    """
    path = directory / "tokenizer.json"
    if path.exists():
        fast, content = _read(path)
        settings = files.read(directory)
        spelled, strip_leading_space = _spelling(fast, path)
        _check(content, settings, path)
        fast.no_truncation()
        fast.no_padding()
    else:
        settings = files.read(directory)
        fast = _from_two_files(directory, settings)
        spelled, strip_leading_space = byte_level.contents, False
    with _readable(path):
        _add(fast, settings, path)
        before, after = _around(fast, path)
    ids = fast.get_vocab(with_added_tokens=True)
    pieces = _pieces(fast, path)
    added = fast.get_added_tokens_decoder()
    special = {index for index, token in added.items() if token.special}
    literal = added if spelled is byte_level.contents else special
    control = frozenset(index for index in special if not _SENTINEL.fullmatch(pieces[index]))
    named = settings.special_tokens
    if not path.exists():
        flags = (("bos_token", settings.add_bos), ("eos_token", settings.add_eos))
        before, after = ((ids[named[name]],) if wanted and name in named else () for name, wanted in flags)
    if beyond := [index for index in (*before, *after) if index >= len(pieces)]:
        raise UserError(
            f"the post_processor of {path} puts the token {beyond[0]} around a text, but there are only {len(pieces)}: "
            "fetch it again."
        )
    candidates = [ids.get(named.get("bos_token", "")), *before, settings.bos_id]
    return Tokenizer(
        split=splitter(fast),
        pieces=pieces,
        contents=[piece.encode() if index in literal else spelled(piece) for index, piece in enumerate(pieces)],
        control=control,
        bos_id=next((index for index in candidates if index is not None and index < len(pieces)), None),
        eos_ids=end_of_turn_ids([ids.get(named.get("eos_token", "")), *settings.eos_ids], ids, control),
        add_bos=bool(before),
        end_id=after[-1] if after else None,
        before=before,
        after=after,
        strip_leading_space=strip_leading_space,
        chat_template=settings.chat_templates.get(DEFAULT),
        chat_templates=settings.chat_templates,
        special_tokens=named,
        remarks=(*settings.remarks, *_remarks(directory, settings, pieces, before, after)),
    )


def _pieces(fast: tokenizers.Tokenizer, path: pathlib.Path) -> list[str]:
    """The piece of every id; ids without one have an empty piece."""
    ids = fast.get_vocab(with_added_tokens=True)
    last = max(ids.values(), default=-1)
    if last >= len(ids) + _MOST_GAPS:
        raise UserError(
            f"{path} should number its {len(ids)} tokens from 0, but has an id {last}: use another copy of the model."
        )
    pieces = [""] * (last + 1)
    for piece, index in ids.items():
        pieces[index] = piece
    for index, token in fast.get_added_tokens_decoder().items():
        pieces[index] = token.content
    return pieces


def _remarks(
    directory: pathlib.Path,
    settings: files.TokenizerSettings,
    pieces: Sequence[str],
    before: Sequence[int],
    after: Sequence[int],
) -> Iterator[str]:
    """Yields a sentence where tokenizer_config.json asks for other tokens around a text than tokenizer.json puts."""
    for field, wanted, ids in (("bos", settings.add_bos, before), ("eos", settings.add_eos, after)):
        if wanted is not None and wanted != bool(ids) and (ids or settings.special_tokens.get(f"{field}_token")):
            does = f"puts {' '.join(pieces[index] for index in ids)}" if ids else "puts none"
            yield (
                f"tokenizer_config.json of {directory} says add_{field}_token = {str(wanted).lower()}, but "
                f"tokenizer.json {does} {'before' if field == 'bos' else 'behind'} a text and is followed"
            )


def _copied(content: str) -> tokenizers.Tokenizer:
    """A tokenizer from the JSON of another; the package may refuse merges that it once read from a file."""
    try:
        return tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(
            f"the tokenizer's merges should be built of its pieces, but are not ({str(error)[:200]}): fetch it again."
        ) from None


def splitter(fast: tokenizers.Tokenizer) -> Split:
    """`Tokenizer.split` for a `tokenizers.Tokenizer`. Added tokens that are not control tokens are always found."""
    ids = {token.content: index for index, token in fast.get_added_tokens_decoder().items() if token.special}

    @functools.cache
    def plain() -> tokenizers.Tokenizer:
        """A tokenizer that finds no control tokens."""
        # A copy, since the switch is of the whole object, which other threads may be using.
        content = fast.to_str()
        if "BPE" not in type(fast.model).__name__:
            content = _without(content, ids)
        copy = _copied(content)
        copy.encode_special_tokens = True
        return copy

    @functools.cache
    def inside() -> tokenizers.Tokenizer:
        """`plain` for parts inside a text, if only its beginning takes a space."""
        before = plain().to_str()
        after = before.replace('"prepend_scheme":"first"', '"prepend_scheme":"never"')
        if before == after:
            return plain()
        copy = _copied(after)
        copy.encode_special_tokens = True
        return copy

    @functools.cache
    def cutter() -> tokenizers.Tokenizer:
        """A tokenizer that finds added tokens and reads nothing else."""
        empty = tokenizers.Tokenizer(tokenizers.models.BPE())
        if fast.normalizer is not None:
            empty.normalizer = fast.normalizer
        empty.add_tokens([token for _, token in sorted(fast.get_added_tokens_decoder().items())])
        return empty

    def places(text: str) -> list[tuple[int, int, int]]:
        """The id, beginning and end of every control token. Other added tokens are part of the text between them."""
        encoding = cutter().encode(text, add_special_tokens=False)
        names = map(cutter().id_to_token, encoding.ids)
        pairs = zip(names, encoding.offsets, strict=True)
        return [(ids[name], begin, end) for name, (begin, end) in pairs if name in ids]

    def split(text: str, special: bool, hidden: Mapping[str, str] | None = None, /) -> list[int]:
        if hidden is None or not special:
            text = text.translate(str.maketrans(dict(hidden or {})))
            return (fast if special else plain()).encode(text, add_special_tokens=False).ids
        table, wanted = str.maketrans(dict(hidden)), places(text)
        whole = text.translate(table)
        if [token for token, _, _ in places(whole)] == [token for token, _, _ in wanted]:
            return fast.encode(whole, add_special_tokens=False).ids
        encoded, at = [], 0
        for token, begin, end in wanted:
            encoded += between(text[at:begin].translate(table), at)
            encoded.append(token)
            at = end
        return encoded + between(text[at:].translate(table), at)

    def between(text: str, at: int) -> list[int]:
        return (inside() if at else plain()).encode(text, add_special_tokens=False).ids if text else []

    return split


def _without(content: str, names: Mapping[str, int]) -> str:
    """A tokenizer's JSON without control tokens in its model, which would make them of their characters."""
    raw = json.loads(content)
    vocab, model = raw["model"].get("vocab"), raw["model"]
    if isinstance(vocab, list):  # a piece and its score each; the unknown piece is known by its place
        for index in names.values():
            if index < len(vocab) and index != model.get("unk_id"):
                vocab[index][0] = f"\U0010ffff{index}"
    raw["added_tokens"] = [token for token in raw["added_tokens"] if not token["special"]]
    return json.dumps(raw)


def _read(path: pathlib.Path) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """tokenizer.json as the package `tokenizers` reads it, and its JSON."""
    with _readable(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and (odd := sorted(content.keys() - {*_FIELDS})):
            raise UserError(f"{path} sets {odd[0]!r:.80}, which is not known: use another copy of the model.")
        model = content.get("model") if isinstance(content, dict) else None
        # The package panics at a prefix that is longer than a piece, and prints a backtrace.
        if isinstance(model, dict) and model.get("type") != "WordPiece" and model.get("continuing_subword_prefix"):
            raise UserError(
                f"{path} sets 'model.continuing_subword_prefix', which is not followed: use another copy of the model."
            )
        return tokenizers.Tokenizer.from_file(str(path)), content


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[None]:
    """Turns errors of the package `tokenizers` into a UserError: bare Exceptions, and panics (BaseExceptions)."""
    try:
        yield
    except (UserError, KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:
        raise UserError(
            f"{path} should be a Hugging Face tokenizer, but cannot be read ({str(error)[:200]}): fetch it again."
        ) from error


def _from_two_files(directory: pathlib.Path, settings: files.TokenizerSettings) -> tokenizers.Tokenizer:
    """A tokenizer from vocab.json and merges.txt; the class in the settings says how a text is cut into words."""
    name = settings.tokenizer_class or ("Qwen2Tokenizer" if settings.model_type == "qwen2" else None)
    if name not in _PRE_TOKENIZERS or settings.prefix_space:
        raise UserError(
            f"{directory} has vocab.json and merges.txt, which are read for {' and '.join(_PRE_TOKENIZERS)} without "
            f"add_prefix_space, but tokenizer_config.json names {name}: save a tokenizer.json with transformers."
        )
    vocab = files.json_object(directory / "vocab.json")
    pieces = sorted(vocab, key=lambda piece: vocab[piece] if type(vocab[piece]) is int else -1)
    if [vocab[piece] for piece in pieces] != [*range(len(pieces))]:
        raise UserError(f"{directory / 'vocab.json'} should number its pieces from 0, each once: fetch it again.")
    try:
        lines = (directory / "merges.txt").read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{directory / 'merges.txt'} should be text, but is not ({error}): fetch it again.") from None
    merges = [line.rstrip("\r") for line in lines[lines[0].startswith("#version") :] if line.strip()]
    return byte_level.build(pieces, merges, byte_level.pre_tokenizer(_PRE_TOKENIZERS[name]), (), ())


def _check(content: Mapping[str, Any], settings: files.TokenizerSettings, path: pathlib.Path) -> None:
    """Raises a UserError for fields of tokenizer.json that are not supported or that another file contradicts."""
    model = content["model"]
    odd = {f"model.{name}": model[name] for name in _NO_MODEL_FIELDS if model.get(name)}
    if odd:
        name = next(iter(odd))
        raise UserError(f"{path} sets {name!r:.80} to {odd[name]!r:.60}, which is not followed: use another copy.")
    processor = content.get("post_processor") or {}
    for step in (processor, *processor.get("processors", ())):
        used = {piece["SpecialToken"]["id"] for piece in step.get("single", ()) if "SpecialToken" in piece}
        if used - {*step.get("special_tokens", ())}:
            raise UserError(
                f"the post_processor of {path} should give ids of all its tokens, but does not: fetch it again."
            )
    if settings.prefix_space is not None and settings.prefix_space != _puts_space(content):
        asked, does = ("a", "none") if settings.prefix_space else ("no", "one")
        raise UserError(
            f"tokenizer_config.json asks for {asked} space before a text (add_prefix_space), but {path} puts {does}: "
            "take one of them from another copy of the model."
        )


def _puts_space(content: Mapping[str, Any]) -> bool:
    """Whether a space is put before a text."""
    steps: list[Any] = [content.get("normalizer"), content.get("pre_tokenizer")]
    for step in steps:  # the list grows
        if not isinstance(step, Mapping):
            continue
        steps += [*step.get("normalizers", ()), *step.get("pretokenizers", ())]
        scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
        kind = step.get("type")
        if kind == "Prepend" or (kind == "Metaspace" and scheme != "never"):
            return True
        if kind == "ByteLevel" and step.get("add_prefix_space"):
            return True
    return False


def _add(fast: tokenizers.Tokenizer, settings: files.TokenizerSettings, path: pathlib.Path) -> None:
    """Adds tokens of other files to a tokenizer, as transformers does: those with ids, then those with names.

    Raises:
      UserError: a token whose id is taken, or does not follow the vocabulary.
    """

    def as_added(token: files.Added) -> tokenizers.AddedToken:
        return tokenizers.AddedToken(**{name: each for name, each in token._asdict().items() if each is not None})

    held = fast.get_added_tokens_decoder().values()
    known, names = {repr(token) for token in held}, {token.content for token in held}
    more = [token for _, token in sorted(settings.added.items()) if repr(as_added(token)) not in known]
    names |= {token.content for token in more}
    for token in settings.named:
        if token.content and token.content not in names:
            more.append(token)
            names.add(token.content)
    fast.add_tokens([as_added(token) for token in more])
    for index, token in settings.added.items():
        if (known_as := fast.token_to_id(token.content)) != index:
            raise UserError(
                f"the files beside {path} give the id {index} to the token {token.content!r:.80}, but there it is "
                f"{known_as}: the files are of two models, so fetch them again."
            )


def _around(fast: tokenizers.Tokenizer, path: pathlib.Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the file puts before and behind a text, as a few texts show."""
    around = None
    for probe in ("a", "0", "Ġ", "."):
        whole, ids = fast.encode(probe).ids, fast.encode(probe, add_special_tokens=False).ids
        places = [at for at in range(len(whole) - len(ids) + 1) if whole[at : at + len(ids)] == ids]
        fits = [(tuple(whole[:at]), tuple(whole[at + len(ids) :])) for at in places]
        if ids:
            around = fits if around is None else [each for each in around if each in fits]
    if around == []:
        raise UserError(
            f"{path} should put special tokens around a text and leave it as it is, but its post_processor "
            "does otherwise: use another copy of the model."
        )
    return around[0] if around else (tuple(fast.encode("").ids), ())


def _spelling(fast: tokenizers.Tokenizer, path: pathlib.Path) -> tuple[Callable[[str], bytes], bool]:
    """How pieces spell bytes, and whether a space is put before a text, by the file's decoder."""
    decoder: dict[str, Any] = {"type": None} if fast.decoder is None else json.loads(fast.decoder.__getstate__())
    steps: list[dict[str, Any]] = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    by_type = {step["type"]: step for step in steps}
    followed = all(step.items() >= _DECODERS.get(step["type"], {"": None}).items() for step in steps)
    if followed and "ByteLevel" in by_type:
        return byte_level.contents, False
    if followed and "Metaspace" in by_type:
        return _sentencepiece, by_type["Metaspace"].get("prepend_scheme", "always") != "never"
    if followed and "Replace" in by_type:
        return _sentencepiece, "Strip" in by_type
    known = "of this kind that is known" if not by_type.keys() - _DECODERS.keys() else "ByteLevel, Metaspace or Replace"
    raise UserError(
        f"{path} should decode byte-level or SentencePiece pieces (decoder {known}), "
        f"but its decoder is {' + '.join(map(str, by_type))}: use a model of another family."
    )


def _sentencepiece(piece: str) -> bytes:
    """The bytes of a piece in SentencePiece's spelling."""
    byte = _BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()
