"""The tokenizer that the rest of the package sees, whatever file it came from."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cascades.errors import UserError
from cascades.tokenizers import chat, templates

# Control tokens that end a turn in the families that are read here and in models tuned from them.
END_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end_of_turn|>",
    "<|end|>",
    "<end_of_utterance>",
    "<eos>",
)


# `(text, special, hidden=None) -> ids`: a text as tokens, without BOS and EOS. If `special`, names of control tokens in
# the text become those tokens; else they are ordinary characters. `hidden` maps stand-ins to the characters that they
# are read as; a stand-in is never part of a control token.
Split = Callable[..., list[int]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tokenizer:
    """A vocabulary, with encoding and decoding.

    split: text to ids, without BOS and EOS.
    pieces: the piece of every id as its file spells it, for messages. A model may have more logits: they are padding.
    contents: the piece of every id as UTF-8 bytes (`Ġthe`, `▁the` and ` the` are the same bytes).
    control: ids that print nothing.
    bos_id: the id that begins a text; None if the model has none.
    eos_ids: every id that ends a turn, ascending; ids beyond the vocabulary are left out.
    add_bos: whether the model expects BOS before a text.
    end_id: the id that it expects after a text (T5's encoder); None for nearly every model.
    before, after: all ids that it expects around a text; by default those two.
    strip_leading_space: whether `split` puts a space before the text, which `decode` takes off again.
    chat_template: Jinja source of the template in use; None if there is none, or several and none is chosen.
    chat_templates: all templates by name; a model's only one is called `default`.
    special_tokens: names and texts for the template: `bos_token`, `eos_token`, ….
    remarks: sentences for a person about what the files say but is not followed.
    """

    split: Split
    pieces: Sequence[str]
    contents: Sequence[bytes]
    control: frozenset[int]
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    add_bos: bool = False
    end_id: int | None = None
    strip_leading_space: bool = False
    before: tuple[int, ...] | None = None
    after: tuple[int, ...] | None = None
    chat_template: str | None = None
    chat_templates: Mapping[str, str] = dataclasses.field(default_factory=dict)
    special_tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def __post_init__(self):
        if self.before is None:
            self._set("before", (self.bos_id,) if self.add_bos and self.bos_id is not None else ())
        if self.after is None:
            self._set("after", () if self.end_id is None else (self.end_id,))
        if self.chat_template is not None and not self.chat_templates:
            self._set("chat_templates", {templates.DEFAULT: self.chat_template})
        if behind := [token for token in self.eos_ids if token >= self.vocab_size]:
            self._set("eos_ids", tuple(token for token in self.eos_ids if token < self.vocab_size))
            ids = ", ".join(map(str, behind))
            remark = f"end-of-text ids behind the {self.vocab_size} tokens of the vocabulary are left out: {ids}"
            self._set("remarks", (*self.remarks, remark))
        assert self.before is not None and self.after is not None
        for token in (self.bos_id, self.end_id, *self.before, *self.after):
            if token is not None and not 0 <= token < self.vocab_size:
                raise UserError(
                    f"the ids of a tokenizer's special tokens should be below its {self.vocab_size} tokens, but one is "
                    f"{token}: use another copy of the model."
                )

    def _set(self, field: str, value: Any) -> None:
        object.__setattr__(self, field, value)

    @property
    def vocab_size(self) -> int:
        """The number of ids. Logits beyond them are padding, which the caller crops."""
        return len(self.pieces)

    @property
    def has_chat_template(self) -> bool:
        """Whether this is a chat model, even if it has several templates and none is chosen yet."""
        return bool(self.chat_templates)

    def using(self, template: str | None) -> "Tokenizer":
        """The same tokenizer with its chat template of that name; None changes nothing.

        Raises:
          UserError: it has no such template.
        """
        if template is None:
            return self
        return dataclasses.replace(self, chat_template=templates.choose(self.chat_templates, template))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of `contents`: equal for the same vocabulary from different kinds of file."""
        digest = hashlib.sha256()
        for content in self.contents:
            digest.update(len(content).to_bytes(4, "little") + content)
        return digest.hexdigest()

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of `text`, with what the model expects around a text unless the text itself has it.

        Args:
          text: any string; lone surrogates, which have no UTF-8 form, count as U+FFFD.
          special: whether names of control tokens in the text ("<|im_end|>") become those tokens. Pass False for text
            that is not trusted.
        """
        ids = self._begun(self.split(_valid(text), special), written=special)
        after = list(self.after or ())
        return ids if not after or ids[-len(after) :] == after else [*ids, *after]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; control tokens print nothing, and bytes that are not UTF-8 become U+FFFD."""
        data = b"".join(map(self.printed_bytes, ids))
        return (data.removeprefix(b" ") if self.strip_leading_space else data).decode("utf-8", "replace")

    def printed_bytes(self, token: int) -> bytes:
        """What one id adds to a text: UTF-8 bytes, perhaps part of a character; empty for control and padding ids."""
        if token in self.control or not 0 <= token < len(self.contents):
            return b""
        return self.contents[token]

    def chat(self, messages: Sequence[Any], *, special: bool = False) -> list[int]:
        """Token ids of a conversation, up to where the assistant's answer begins.

        Args:
          messages: `{"role": …, "content": …}` each, oldest first.
          special: whether names of control tokens in the messages become those tokens, as in transformers: a message
            that contains "<|im_end|>" then ends its turn there. If not, only the template's own do, and those in a
            message are ordinary characters, whatever the template makes of them. Tokens that print something, such as
            Qwen's <tool_call>, are no control tokens and are always found.

        Raises:
          UserError: the model has no chat template, or several and none was chosen; a message is malformed, or the
            template refuses the conversation.
        """
        if self.chat_template is None and self.chat_templates:
            raise UserError(
                f"the model has chat templates called {', '.join(sorted(self.chat_templates))}, and none is its "
                "default: choose one by its name with CHAT_TEMPLATE, or pass plain text with RAW_PROMPT=True."
            )
        if self.chat_template is None:
            raise UserError(
                "chat messages need a model with a chat template, and this tokenizer has none: "
                "pass plain text instead, or use the instruction-tuned version of the model."
            )
        if special:
            ids = self.split(_valid(chat.render(self.chat_template, messages, self.special_tokens)), True)
        else:
            names = [self.pieces[token] for token in self.control]
            text, hidden = chat.guarded(self.chat_template, messages, self.special_tokens, names)
            ids = self.split(_valid(text), True, hidden)
        return self._begun(ids, written=True)

    def prompt(self, text: str, *, raw: bool = False, control_tokens: bool | None = None) -> list[int]:
        """Token ids of a prompt: a chat of one message if the model has a chat template, else the text.

        Args:
          raw: whether to use no chat template.
          control_tokens: whether names of control tokens in the text become those tokens. None means
            no with a chat template, and yes without one, where templates are typed by hand.

        Raises:
          UserError: as `chat`.
        """
        if self.has_chat_template and not raw:
            return self.chat([{"role": "user", "content": text}], special=bool(control_tokens))
        return self.encode(text, special=control_tokens is not False)

    def end_of_answer(self, *, raw: bool = False) -> int | None:
        """The id with which a model ends its answer to a `prompt`; None if no id ends a turn.

        A chat model may have an end of texts too, but ends a turn with the token that its template puts there.

        Raises:
          UserError: as `chat`.
        """
        first = min(self.eos_ids, default=None)
        if raw or not self.has_chat_template:
            return first
        ids = self.chat([{"role": role, "content": "x"} for role in ("user", "assistant")])
        return next((token for token in reversed(ids) if token in self.eos_ids), first)

    def _begun(self, ids: list[int], *, written: bool) -> list[int]:
        """`ids` behind `before`, unless they begin with it. written: whether the text may name control tokens."""
        before = list(self.before or ())
        return ids if written and ids[: len(before)] == before else [*before, *ids]


def end_of_turn_ids(
    declared: Iterable[int | None], ids_by_piece: Mapping[str, int], control: frozenset[int]
) -> tuple[int, ...]:
    """The declared ids, and those of control tokens in `END_OF_TURN`, ascending."""
    known = {ids_by_piece[name] for name in END_OF_TURN if ids_by_piece.get(name, -1) in control}
    return tuple(sorted(known | {int(token) for token in declared if token is not None and int(token) >= 0}))


def _valid(text: str) -> str:
    """`text` with lone surrogates, which JSON may hold ("\\ud800") and no tokenizer can encode, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
