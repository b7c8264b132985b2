"""Finds the names of tokens in a text."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Flags(NamedTuple):
    """How a name is found: with the white space before it or behind it, or only as a word of its own."""

    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


_PLAIN = Flags()
_WORD, _SPACE = re.compile(r"\w"), re.compile(r"\s+")


def finder(tokens: Mapping[str, int], flags: Mapping[str, Flags] | None = None) -> Callable[[str], list[str | int]]:
    """Makes a function that cuts a text at the names of tokens: at the first place, the longest name that fits.

    Gemma has thousands of names, too many for one regular expression to try at every character. As in the package
    `tokenizers`, a name that is no word of its own is skipped whole, with shorter names inside it.

    Args:
      tokens: ids by name.
      flags: of the names that have any.

    Returns:
      A function from a text to its parts, texts and ids. White space that a token absorbs is in no part.
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
