"""Finds names of tokens in a text."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Flags(NamedTuple):
    """How a name is found: with the white space before or behind it, or only where no letter touches it."""

    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


_PLAIN = Flags()
_WORD, _SPACE = re.compile(r"\w"), re.compile(r"\s+")


def finder(tokens: Mapping[str, int], flags: Mapping[str, Flags] | None = None) -> Callable[[str], list[str | int]]:
    """Cuts a text at the names of tokens: the longest name that fits at the earliest place.

    Gemma has thousands of them, too many for one regular expression to try at every character. `flags` mean what they
    mean to the package `tokenizers`: a name that is refused for its neighbours hides no shorter one.

    Returns:
      A function from a text to its parts: text as it stands, and ids. White space that a token takes in is in no part.
    """
    names = {name: index for name, index in tokens.items() if name}
    if not names:
        return lambda text: [text]
    known = flags or {}
    starts = re.compile("[" + re.escape("".join(sorted({name[0] for name in names}))) + "]")
    lengths = sorted({len(name) for name in names}, reverse=True)

    def find(text: str) -> list[str | int]:
        parts: list[str | int] = []
        begin = end = 0
        while match := starts.search(text, end):
            at = match.start()
            name = next((text[at : at + n] for n in lengths if text[at : at + n] in names), None)
            if name is None:
                end = at + 1
                continue
            end = at + len(name)
            how = known.get(name, _PLAIN)
            if how.single_word and (_WORD.match(text[end : end + 1]) or (at and _WORD.match(text[at - 1]))):
                continue
            stop = end
            if how.lstrip:
                at = begin + len(text[begin:at].rstrip())
            if how.rstrip:
                space = _SPACE.match(text, end)
                stop = end = space.end() if space else end
            if at > begin:
                parts.append(text[begin:at])
            parts.append(names[name])
            begin = stop
        return [*parts, text[begin:]] if begin < len(text) else parts

    return find
