"""Token ids to text, piece by piece, never half a character."""

import codecs
from collections.abc import Iterable

from cascades.tokenizers.base import Tokenizer


class Detokenizer:
    """Turns token ids into text as they arrive.

    A character whose UTF-8 bytes are spread over several tokens is held back until its last byte arrives. The pushes
    and the flush, joined, equal `tokenizer.decode` of all ids. A push costs the bytes of its own tokens, however long
    the text is: the only state is an unfinished character.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._reset()

    def _reset(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = self._tokenizer.strip_leading_space

    def push(self, ids: Iterable[int]) -> str:
        """The text that `ids` completes. Control tokens and ids beyond the vocabulary print nothing."""
        data = b"".join(map(self._tokenizer.printed_bytes, ids))
        if self._at_start and data:
            data = data.removeprefix(b" ")
            self._at_start = False
        return self._decoder.decode(data)

    def flush(self) -> str:
        """Ends the text: bytes of an unfinished character become U+FFFD. The next push starts a new text."""
        rest = self._decoder.decode(b"", final=True)
        self._reset()
        return rest
