"""Metrics as sums over answers: means, BLEU and chrF by sacrebleu, ROUGE by rouge-score (pip install -e '.[eval]')."""

import functools
import importlib.metadata
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cascades.errors import UserError
from cascades.evaluation.tasks.contract import Metric

Scorer = Callable[[dict[str, Any], str], float]
"""`scorer(record, text)`: how good one answer is, from 0 to 1."""

_ORDER = 4  # of the n-grams of BLEU


def mean(
    name: str,
    definition: str,
    scorer: Scorer,
    *,
    highest: float = 1.0,
    where: Callable[[dict[str, Any]], bool] | None = None,
) -> Metric:
    """Returns the mean of a score over answers, or over the records of `where` alone; nan where there is none.

    Args:
      scorer: from 0 to 1. highest: what 1 is written as, such as 100.
    """

    def statistics(record: dict[str, Any], text: str) -> tuple[float, float]:
        if where is not None and not where(record):
            return 0.0, 0.0
        return highest * scorer(record, text), 1.0

    return Metric(name, definition, statistics, _ratio, highest)


def bleu(reference: str, tokenize: str = "13a") -> Metric:
    """Returns corpus BLEU (Papineni et al., 2002), equal to `sacrebleu.corpus_bleu`; from 0 to 100.

    Args:
      reference: the field of a record that holds the translation. tokenize: as sacrebleu names it.

    Raises:
      UserError: sacrebleu is not installed.
    """
    version = _version("sacrebleu", "BLEU")
    signature = f"nrefs:1|case:mixed|eff:no|tok:{tokenize}|smooth:exp|version:{version}"

    def statistics(record: dict[str, Any], text: str) -> tuple[float, ...]:
        found = _bleu(tokenize).sentence_score(text, [record[reference]])
        return tuple(map(float, (*found.counts, *found.totals, found.sys_len, found.ref_len)))

    def value(sums: np.ndarray) -> float:
        counts = [round(each) for each in sums.tolist()]
        correct, total, (system, length) = counts[:_ORDER], counts[_ORDER : 2 * _ORDER], counts[2 * _ORDER :]
        return _bleu(tokenize).compute_bleu(correct, total, system, length, smooth_method="exp").score

    return Metric("BLEU", f"Corpus BLEU (Papineni et al., 2002) by sacrebleu, {signature}.", statistics, value, 100.0)


def chrf(reference: str) -> Metric:
    """Returns corpus chrF2 (Popović, 2015), equal to `sacrebleu.corpus_chrf`; from 0 to 100.

    Args:
      reference: the field of a record that holds the translation.

    Raises:
      UserError: sacrebleu is not installed.
    """
    signature = f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{_version('sacrebleu', 'chrF')}"

    # sacrebleu gives a sentence's counts and the score of summed ones under private names alone; a test compares the
    # two with its public function.
    def statistics(record: dict[str, Any], text: str) -> tuple[float, ...]:
        return tuple(map(float, _chrf()._extract_corpus_statistics([text], [[record[reference]]])[0]))

    def value(sums: np.ndarray) -> float:
        return float(_chrf()._compute_f_score([round(each) for each in sums.tolist()]))

    return Metric("chrF", f"Corpus chrF2 (Popović, 2015) by sacrebleu, {signature}.", statistics, value, 100.0)


def rouge(kind: str, reference: str) -> Metric:
    """Returns the mean F-measure of ROUGE (Lin, 2004) by rouge-score, stemmed, times 100.

    Args:
      kind: "1", "2" or "L", the last over the whole summary as one sentence. reference: the field of a record that
        holds the summary.

    Raises:
      UserError: rouge-score is not installed.
    """
    version = _version("rouge-score", f"ROUGE-{kind}")
    whole = ", the whole summary as one sentence" if kind == "L" else ""
    definition = f"Mean F1 of ROUGE-{kind} (Lin, 2004){whole}, times 100, by rouge-score {version}, use_stemmer=True."

    def scorer(record: dict[str, Any], text: str) -> float:
        return float(_rouge(record[reference], text)[f"rouge{kind}"].fmeasure)

    return mean(f"ROUGE-{kind}", definition, scorer, highest=100.0)


def _ratio(sums: np.ndarray) -> float:
    return float(sums[0] / sums[1]) if sums[1] else math.nan


@functools.cache
def _bleu(tokenize: str) -> Any:
    from sacrebleu.metrics.bleu import BLEU

    # The effective order bears on the score of the sentence alone, not on its counts, and without it sacrebleu warns.
    return BLEU(tokenize=tokenize, effective_order=True)


@functools.cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


@functools.cache
def _rouge_scorer() -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)


@functools.lru_cache(maxsize=16)  # the three metrics of a task ask for the same answer in turn, in a few threads
def _rouge(reference: str, text: str) -> Any:
    return _rouge_scorer().score(reference, text)


def _version(package: str, metric: str) -> str:
    """Which version is installed, asked before anything is decoded; the import itself takes seconds and waits."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"{metric} needs {package}, which is not installed: pip install -e '.[eval]'") from None
