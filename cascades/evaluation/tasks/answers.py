"""How short answers to questions are compared."""

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def plain(text: str) -> str:
    """Returns a text in lower case without ASCII punctuation, as `ignore_case` and `ignore_punctuation` of
    lm-evaluation-harness leave it."""
    return text.lower().translate(_PUNCTUATION)


def normalized(text: str) -> str:
    """Returns a text as the evaluation script of SQuAD compares it: `plain`, without articles, single blanks."""
    return " ".join(_ARTICLES.sub(" ", plain(text)).split())


def exact(text: str, references: Sequence[str]) -> float:
    """Returns 1 where a text is one of the references, normalized as SQuAD's, else 0."""
    return float(normalized(text) in map(normalized, references))


def f1(text: str, references: Sequence[str]) -> float:
    """Returns the F-measure of the words that a text shares with a reference, the best of all, normalized as SQuAD's;
    where one of the two has no words it is whether neither has."""
    return max(_f1(normalized(text).split(), normalized(reference).split()) for reference in references)


def _f1(words: Sequence[str], reference: Sequence[str]) -> float:
    if not words or not reference:
        return float(words == reference)
    shared = (Counter(words) & Counter(reference)).total()
    return 2 * shared / (len(words) + len(reference))
