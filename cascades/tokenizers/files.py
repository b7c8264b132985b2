"""The JSON files beside a tokenizer: every field is read, known to be without meaning here, or refused by name."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cascades.errors import UserError
from cascades.tokenizers import templates

_CONFIG, _MAP, _ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_GENERATION, _MODEL = "generation_config.json", "config.json"
# In the order in which transformers adds those that are not pieces.
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens")
_FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")

# Fields of tokenizer_config.json that are read below.
_READ = frozenset((
    *_LISTS, "model_specific_special_tokens", "added_tokens_decoder", "add_bos_token", "add_eos_token",
    "add_prefix_space", "bos_token_id", "chat_template", "eos_token_id", "extra_ids", "legacy", "tokenizer_class",
))  # fmt: skip
# Fields that change neither the ids of a text nor the text of ids: how batches are padded and cut, where files came
# from, clean-up of decoded text (never done here), other parts of a model.
_WITHOUT_MEANING = frozenset((
    "_commit_hash", "_from_auto", "_name_or_path", "backend", "chat_control_tokens", "clean_up_tokenization_spaces",
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", "device_map", "feature_extractor_type",
    "from_slow", "image_processor_type", "image_seq_length", "image_seq_len", "init_inputs", "is_local",
    "local_files_only", "max_input_length", "max_len", "max_length", "merges_file", "model_input_names",
    "model_max_length", "model_type", "name_or_path", "pad_to_multiple_of", "pad_token_id", "pad_token_type_id",
    "padding", "padding_side", "processor_class", "response_schema", "response_template", "return_attention_mask",
    "return_tensors", "return_token_type_ids", "revision", "spaces_between_special_tokens", "special_tokens_map_file",
    "stride", "token_type_ids_pattern", "token_type_ids_include_special_tokens", "tokenizer_file", "tokenizer_type",
    "transformers_version", "truncation", "truncation_side", "truncation_strategy", "trust_remote_code", "unk_token_id",
    "use_default_system_prompt", "use_fast", "verbose", "vocab_file", "vocab_size",
))  # fmt: skip


def _nothing(value: Any) -> bool:
    """Whether the value of a field says nothing."""
    return value is None or value is False or value in ("", [], {})


# Fields with a meaning that is not supported, and the values that they may have.
_ONLY: dict[str, Callable[[Any], bool]] = {
    "auto_map": lambda value: isinstance(value, Mapping) and _nothing(value.get("AutoTokenizer")),
    "errors": lambda value: value == "replace",
    "fast_tokenizer_files": lambda value: value == ["tokenizer.json"],
    "sp_model_kwargs": lambda value: isinstance(value, Mapping) and all(map(_nothing, value.values())),
}


class Added(NamedTuple):
    """A token beside the vocabulary, as the package `tokenizers` describes it; `normalized=None` is its default."""

    content: str
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool | None = None


class TokenizerSettings(NamedTuple):
    """What the files say.

    special_tokens: the texts of `bos_token`, `eos_token`, ….
    added: tokens by their ids.
    named: tokens that have a name or stand in a list of special ones; those that are not in the vocabulary follow it,
      in this order.
    bos_id, eos_ids: ids from tokenizer_config.json, generation_config.json and config.json.
    add_bos, add_eos, prefix_space, extra_ids: None if no file says.
    legacy: whether every part of a text between control tokens begins with a space.
    model_type, vocab_size: of config.json.
    tokenizer_class: without "Fast".
    chat_templates: by name.
    remarks: sentences for a person.
    """

    special_tokens: dict[str, str]
    added: dict[int, Added]
    named: tuple[Added, ...]
    bos_id: int | None
    eos_ids: tuple[int, ...]
    add_bos: bool | None
    add_eos: bool | None
    prefix_space: bool | None
    extra_ids: int | None
    legacy: bool
    model_type: str | None
    vocab_size: int | None
    tokenizer_class: str | None
    chat_templates: dict[str, str]
    remarks: tuple[str, ...]


def read(directory: pathlib.Path) -> TokenizerSettings:
    """The settings in the files of a directory; missing files count as empty.

    Raises:
      UserError: a file that is broken, a field of the wrong kind, or one that is not known.
    """
    config, beside = (_File(directory / name) for name in (_CONFIG, _MAP))
    generation, model = (_File(directory / name) for name in (_GENERATION, _MODEL))
    _check_fields(config, _READ | _WITHOUT_MEANING)
    _check_fields(beside, frozenset((*_LISTS, "model_specific_special_tokens")))
    added = _added(config)
    # As transformers: added_tokens_decoder makes the map without meaning; without it the map counts first.
    named = _named(config) | ({} if config.content.get("added_tokens_decoder") else _named(beside))
    extra = [*_listed(config), *_listed(beside)]
    texts = {name: token.content for name, token in named.items()}
    if not config.content.get("added_tokens_decoder"):
        added = _added_by_name(_File(directory / _ADDED), {*texts.values(), *(token.content for token in extra)})
    text_model = model.kind("text_config", Mapping, "an object") or {}
    ids = (
        [config, generation, model]
        if model.content.get("eos_token_id") is not None or not text_model
        else [config, generation, _File(model.path, text_model)]
    )
    ordered = sorted(named, key=lambda name: _NAMED.index(name) if name in _NAMED else len(_NAMED))
    sources = {name: json_object(directory / name) for name in ("chat_template.json", "processor_config.json")}
    chat = templates.find(directory, {_CONFIG: config.content, **sources})
    chat_templates, remarks = templates.without_empty(chat, str(directory))
    tokenizer_class = config.kind("tokenizer_class", str, "a name")
    return TokenizerSettings(
        special_tokens=texts,
        added=added,
        named=(*(named[name] for name in ordered), *extra),
        bos_id=next((own[0] for file in reversed(ids) if (own := file.ids("bos_token_id"))), None),
        eos_ids=tuple(dict.fromkeys(token for file in ids for token in file.ids("eos_token_id"))),
        add_bos=config.kind("add_bos_token", bool, "true or false"),
        add_eos=config.kind("add_eos_token", bool, "true or false"),
        prefix_space=config.kind("add_prefix_space", bool, "true or false"),
        extra_ids=config.number("extra_ids"),
        legacy=bool(config.kind("legacy", bool, "true or false")),
        model_type=model.kind("model_type", str, "a name"),
        vocab_size=model.number("vocab_size") or _File(model.path, text_model).number("vocab_size"),
        tokenizer_class=tokenizer_class.removesuffix("Fast") if tokenizer_class else None,
        chat_templates=chat_templates,
        remarks=remarks,
    )


class _File:
    """Checked lookups in a JSON file."""

    def __init__(self, path: pathlib.Path, content: Mapping[str, Any] | None = None):
        self.path = path
        self.content: Mapping[str, Any] = json_object(path) if content is None else content

    def wrong(self, field: str, expected: str, value: Any) -> UserError:
        return UserError(
            f"{self.path} should give {expected} as {field}, but gives {value!r:.60}: use another copy of the model."
        )

    def kind(self, field: str, kind: Any, expected: str) -> Any:
        """The field; None if it is missing or null. Raises a UserError if it is of another type."""
        value = self.content.get(field)
        if value is not None and not isinstance(value, kind):
            raise self.wrong(field, expected, value)
        return value

    def number(self, field: str) -> int | None:
        """A whole number from 0; None if it is missing or null."""
        value = self.content.get(field)
        if value is not None and (type(value) is not int or value < 0):
            raise self.wrong(field, "a whole number", value)
        return value

    def ids(self, field: str) -> list[int]:
        """The ids in a field that holds one or a list of them; numbers below 0 mean none."""
        value = self.content.get(field)
        numbers = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(each) is int for each in numbers):
            raise self.wrong(field, "the id of a token or a list of them", value)
        return [each for each in numbers if each >= 0]

    def token(self, field: str, value: Any) -> Added:
        """A special token, given as its text or as an object with its text and flags."""
        if isinstance(value, str):
            value = {"content": value}
        return self.described(field, {**value, "special": True} if isinstance(value, Mapping) else value)

    def described(self, field: str, value: Any) -> Added:
        """A token, given as an object with its text and flags."""
        content = value.get("content") if isinstance(value, Mapping) else None
        if not isinstance(content, str) or any("\ud800" <= each <= "\udfff" for each in content):
            raise self.wrong(field, "a token with its content", value)
        flags = {flag: value[flag] for flag in _FLAGS if value.get(flag) is not None}
        if not all(isinstance(flag, bool) for flag in flags.values()):
            raise self.wrong(field, "true or false for each flag of a token", value)
        if unknown := value.keys() - {*_FLAGS, "content", "__type", "id"}:
            raise self.wrong(
                field, f"a token with {', '.join(_FLAGS)}", {name: value[name] for name in sorted(unknown)}
            )
        return Added(value["content"], **{"special": False} | flags)


def json_object(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one if there is no file.

    Raises:
      UserError: not JSON, or not an object.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} should be JSON, but is not ({error}): fetch it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} should hold a JSON object, but holds a {type(content).__name__}: fetch it again.")
    return content


def _check_fields(file: _File, known: frozenset[str]) -> None:
    for name, value in file.content.items():
        if name in known or name.endswith("_token") or _nothing(value):
            continue
        if name not in _ONLY or not _ONLY[name](value):
            raise UserError(
                f"{file.path} sets {name!r:.80} to {value!r:.60}, which is not followed and may change the tokens of a "
                "text: remove the field if it does not, or use another copy of the model."
            )


def _named(file: _File) -> dict[str, Added]:
    """The tokens to which a file gives names: `bos_token`, `eos_token`, …."""
    tokens = {name: value for name, value in file.content.items() if name.endswith("_token")}
    more = file.kind("model_specific_special_tokens", Mapping, "an object") or {}
    extra = file.content.get("extra_special_tokens")
    tokens |= dict(more) | (dict(extra) if isinstance(extra, Mapping) else {})
    # `add_bos_token` and the like are flags.
    return {
        name: file.token(name, value)
        for name, value in tokens.items()
        if not isinstance(value, bool | None) and not name.startswith("add_")
    }


def _listed(file: _File) -> list[Added]:
    """The tokens in a file's lists of special ones."""
    tokens = []
    for field in _LISTS:
        value = file.kind(field, list | Mapping, "a list of tokens")
        tokens += [file.token(field, each) for each in value or ()] if not isinstance(value, Mapping) else []
    return tokens


def _added(file: _File) -> dict[int, Added]:
    """The tokens of the field added_tokens_decoder, whose names are ids."""
    value = file.kind("added_tokens_decoder", Mapping, "an object") or {}
    tokens = {}
    for key, token in value.items():
        if not key.isascii() or not key.isdigit() or len(key) > 9:
            raise file.wrong("added_tokens_decoder", "ids of tokens as names", key)
        tokens[int(key)] = file.described("added_tokens_decoder", token)
    return tokens


def _added_by_name(file: _File, special: set[str]) -> dict[int, Added]:
    """The tokens of added_tokens.json by their ids. special: texts that other files call special tokens."""
    tokens = {}
    for name in file.content:
        index = file.number(name)
        if index is None or index in tokens:
            raise file.wrong(name, "an id of its own", index)
        tokens[index] = Added(name, name in special, normalized=name not in special)
    return tokens
