"""Scores of answers for a sweep's SCORE, by the field's own packages: pip install -e '.[eval]'.

A line of the prompts without a `reference` has no score. A score of `whole` texts takes all lines at once.
"""

from collections.abc import Sequence
from typing import Any

from cascades.errors import UserError

__all__ = ["bleu", "exact_match", "rouge_l"]


def exact_match(record: dict[str, Any], text: str) -> float | None:
    """1 where the answer is the reference, blanks around both aside, else 0."""
    reference = _reference(record)
    return None if reference is None else float(text.strip() == reference.strip())


def rouge_l(record: dict[str, Any], text: str) -> float | None:
    """The F-measure of ROUGE-L (Lin, 2004) by rouge-score, stemmed; from 0 to 1."""
    reference = _reference(record)
    if reference is None:
        return None
    try:
        from rouge_score import rouge_scorer
    except ImportError:
        raise UserError("SCORE=@rouge_l needs rouge-score: pip install -e '.[eval]'") from None
    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True).score(reference, text)["rougeL"].fmeasure


def bleu(records: Sequence[dict[str, Any]], texts: Sequence[str]) -> float | None:
    """BLEU of all answers as one corpus, by sacrebleu's default tokenization; from 0 to 100."""
    pairs = [(text, reference) for text, reference in zip(texts, map(_reference, records), strict=True) if reference]
    if not pairs:
        return None
    try:
        import sacrebleu
    except ImportError:
        raise UserError("SCORE=@bleu needs sacrebleu: pip install -e '.[eval]'") from None
    return sacrebleu.corpus_bleu([text for text, _ in pairs], [[reference for _, reference in pairs]]).score


bleu.whole = True  # pyright: ignore[reportFunctionMemberAccess]


def _reference(record: dict[str, Any]) -> str | None:
    reference = record.get("reference")
    return reference if isinstance(reference, str) else None
