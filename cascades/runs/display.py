"""A result as HTML for notebooks and reports: every token marked by who wrote it."""

import html
from collections import Counter
from itertools import groupby

from cascades.decoding import Origin
from cascades.generation import Result
from cascades.generation.results import origin_name
from cascades.runs.terminal import MEANINGS
from cascades.tokenizers import Detokenizer, Tokenizer

# Colours are see-through, so that they suit light and dark pages. The tag shows as well where a page allows no colours.
LOOKS = {
    Origin.DRAFT: ("span", "rgba(46, 160, 67, 0.30)"),
    Origin.RULE: ("u", "rgba(210, 153, 34, 0.45)"),
    Origin.CORRECTION: ("b", "rgba(248, 81, 73, 0.40)"),
    Origin.BONUS: ("i", "rgba(57, 197, 207, 0.35)"),
    Origin.VERIFIER: ("span", "rgba(56, 139, 253, 0.30)"),
    Origin.DRAFTER: ("span", "rgba(46, 160, 67, 0.30)"),
}
_ORIGINS = {origin_name(origin): origin for origin in LOOKS}


def to_html(result: Result, tokenizer: Tokenizer) -> str:
    """Returns a self-contained piece of HTML: the answer, its tokens coloured by origin, over a legend with shares.

    Args:
      result: of a request. tokenizer: the verifier's, as in `engine.pair.verifier.tokenizer`.
    """
    origins = [_ORIGINS[name] for name in result.origins]
    counts = Counter(origins)
    spans = [
        mark(origin, "".join(text for text, _ in group))
        for origin, group in groupby(_pieces(result, origins, tokenizer), key=lambda piece: piece[1])
    ]
    legend = " · ".join(
        f"{mark(origin, MEANINGS[origin])} {counts[origin] / len(origins):.0%}" for origin in LOOKS if counts[origin]
    )
    return (
        f'<div style="max-width: 60em; line-height: 1.6; white-space: pre-wrap">{"".join(spans)}</div>'
        f'<p style="font-size: smaller; opacity: 0.85">{legend}</p>'
    )


def _pieces(result: Result, origins: list[Origin], tokenizer: Tokenizer) -> list[tuple[str, Origin]]:
    """The text as pieces of one origin each, cut where a stop string cut it. A character belongs to its last token."""
    detokenizer, pieces, room = Detokenizer(tokenizer), [], len(result.text)
    for token, origin in zip(result.token_ids, origins, strict=True):
        pieces.append((detokenizer.push([token]), origin))
    if origins:
        pieces.append((detokenizer.flush(), origins[-1]))
    kept = []
    for text, origin in pieces:
        if text[:room]:
            kept.append((text[:room], origin))
        room -= len(text[:room])
    return kept


def mark(origin: Origin, text: str) -> str:
    """Returns HTML of a text, marked by who wrote it."""
    tag, colour = LOOKS[origin]
    style = f"background: {colour}; border-radius: 3px"
    return f'<{tag} style="{style}" title="{html.escape(MEANINGS[origin])}">{html.escape(text)}</{tag}>'
