"""A request's text as it grows: whole characters, and nothing of a stop string."""

from collections.abc import Sequence

from cascades.tokenizers import Detokenizer, Tokenizer


class Text:
    """Collects the pieces of one answer.

    A piece is text with the origin of the token that completed it. Text that may turn out to be the beginning of a stop
    string is held back.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self._detokenizer = Detokenizer(tokenizer)
        self._stop = stop
        self._held: list[tuple[str, int]] = []
        self._released: list[str] = []
        self.stopped = False

    @property
    def released(self) -> str:
        """The text so far, all of it once `push` has stopped or `flush` was called."""
        return "".join(self._released)

    def push(self, token: int, origin: int) -> list[tuple[str, int]]:
        """Takes a token; returns the pieces that are safe to show. Sets `stopped` once a stop string is complete."""
        self._held.append((self._detokenizer.push([token]), origin))
        return self._release()

    def flush(self, origin: int) -> list[tuple[str, int]]:
        """Returns what is held back, the remains of an unfinished character included."""
        self._held.append((self._detokenizer.flush(), origin))
        return self._release(final=True)

    def _release(self, final: bool = False) -> list[tuple[str, int]]:
        held = "".join(piece for piece, _ in self._held)
        places = [at for text in self._stop if (at := held.find(text)) >= 0]
        if places:
            self.stopped = True
            safe = min(places)
        elif final:
            safe = len(held)
        else:
            safe = len(held) - max((_overlap(held, text) for text in self._stop), default=0)
        pieces, rest = [], []
        for piece, origin in self._held:
            head, tail = piece[:safe], piece[safe:]
            safe -= len(head)
            if head:
                pieces.append((head, origin))
            if tail:
                rest.append((tail, origin))
        self._held = [] if self.stopped else rest
        self._released += [piece for piece, _ in pieces]
        return pieces


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
