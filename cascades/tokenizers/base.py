"""The tokenizer that the rest of the package sees, whatever file it came from."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cascades.errors import UserError
from cascades.tokenizers import chat

# Control tokens that end a turn in the families that the package reads.
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<eos>")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tokenizer:
    """A vocabulary and the two ways through it.

    split: `(text, special) -> ids`, without BOS and EOS. With `special` the names of control tokens in the text become
      those tokens; without it they are ordinary characters.
    pieces: every real id's piece as its file spells it, for messages. A model may have more logits than that: padding.
    contents: every real id's piece as UTF-8 bytes (`Ġthe`, `▁the` and ` the` are the same bytes).
    control: ids that print nothing.
    bos_id: begin-of-text id, None where the model has none.
    eos_ids: every id that ends a turn, ascending.
    add_bos: whether the model wants BOS before a text.
    end_id: the id that it wants behind a text (T5's encoder); None for nearly every model.
    strip_leading_space: whether `split` puts a space before the text, so that `decode` takes one off.
    chat_template: Jinja source, None where the model has none.
    special_tokens: what the template sees: `bos_token`, `eos_token`, ….
    """

    split: Callable[[str, bool], list[int]]
    pieces: Sequence[str]
    contents: Sequence[bytes]
    control: frozenset[int]
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    add_bos: bool = False
    end_id: int | None = None
    strip_leading_space: bool = False
    chat_template: str | None = None
    special_tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for token in (self.bos_id, self.end_id, *self.eos_ids):
            if token is not None and not 0 <= token < self.vocab_size:
                raise UserError(
                    f"the ids of a tokenizer's special tokens should be below its {self.vocab_size} tokens, but one is "
                    f"{token}: use another copy of the model."
                )

    @property
    def vocab_size(self) -> int:
        """Number of real ids. Logits behind them are padding, and the caller crops them."""
        return len(self.pieces)

    @property
    def has_chat_template(self) -> bool:
        return self.chat_template is not None

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the piece table: equal for the same vocabulary read from different kinds of file."""
        digest = hashlib.sha256()
        for content in self.contents:
            digest.update(len(content).to_bytes(4, "little") + content)
        return digest.hexdigest()

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of `text`, with BOS in front where the model wants one and the text does not begin with it.

        Args:
          text: any string; lone surrogates, which have no UTF-8 form, count as U+FFFD.
          special: whether names of control tokens in the text ("<|im_end|>") become those tokens. Pass False for text
            that a stranger wrote.
        """
        ids = self._with_bos(self.split(_valid(text), special), written=special)
        return ids if self.end_id is None or ids[-1:] == [self.end_id] else [*ids, self.end_id]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; control tokens print nothing, and bytes that are not UTF-8 become U+FFFD."""
        data = b"".join(map(self.printed_bytes, ids))
        return (data.removeprefix(b" ") if self.strip_leading_space else data).decode("utf-8", "replace")

    def printed_bytes(self, token: int) -> bytes:
        """What one id adds to a text: UTF-8 bytes, perhaps a part of a character; empty for control and padding ids."""
        if token in self.control or not 0 <= token < len(self.contents):
            return b""
        return self.contents[token]

    def chat(self, messages: Sequence[Any]) -> list[int]:
        """Token ids of a conversation, up to where the assistant's answer begins.

        The whole rendered text is parsed for control tokens, as transformers does by default: a message that contains
        "<|im_end|>" ends its turn there. Whoever passes on strangers' text strips such names first.

        Args:
          messages: `{"role": …, "content": …}` each, oldest first.

        Raises:
          UserError: the model has no chat template, a message is malformed, or the template refuses the conversation.
        """
        if self.chat_template is None:
            raise UserError(
                "chat messages need a model with a chat template, and this tokenizer has none: "
                "pass plain text instead, or use the instruction-tuned version of the model."
            )
        text = chat.render(self.chat_template, messages, self.special_tokens)
        return self._with_bos(self.split(_valid(text), True), written=True)

    def _with_bos(self, ids: list[int], *, written: bool) -> list[int]:
        if not self.add_bos or self.bos_id is None or (written and ids[:1] == [self.bos_id]):
            return ids
        return [self.bos_id, *ids]


def end_of_turn_ids(
    declared: Iterable[int | None], ids_by_piece: Mapping[str, int], control: frozenset[int]
) -> tuple[int, ...]:
    """Declared end ids, and the well-known end-of-turn tokens among the control tokens; ascending."""
    known = {ids_by_piece[name] for name in END_OF_TURN if ids_by_piece.get(name, -1) in control}
    return tuple(sorted(known | {int(token) for token in declared if token is not None and int(token) >= 0}))


def _valid(text: str) -> str:
    """`text` with lone surrogates (as JSON's "\\ud800" can bring) replaced: no tokenizer can encode them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
