"""Metrics as sums over answers, against the packages that define them and against figures worked out by hand."""

import importlib.metadata
import math

import numpy as np
import pytest
import rouge_score.rouge_scorer as rouge
import sacrebleu

from cascades.errors import UserError
from cascades.evaluation.tasks import answers, metrics
from cascades.evaluation.tasks.contract import score

TRUE = ["A dog runs across the green field .", "Two men sit on a bench .", "Ein Hund läuft.", "It is the guide."]
TEXTS = ["A dog is running across the field .", "Two men sit on a bench .", "", "Quite, another thing: (yes)"]
RECORDS = [{"to": text} for text in TRUE]
CORPORA = [
    (TRUE, TEXTS),
    (TRUE, TRUE),
    (TRUE, [""] * 4),
    (["short"], ["short"]),
    (["no word in common"], ["quite another thing altogether here"]),
]


@pytest.mark.parametrize(("references", "texts"), CORPORA)
def test_bleu_and_chrf_are_those_of_the_corpus(references, texts):
    records = [{"to": text} for text in references]
    assert score(metrics.bleu("to"), records, texts) == sacrebleu.corpus_bleu(texts, [references]).score
    assert score(metrics.chrf("to"), records, texts) == sacrebleu.corpus_chrf(texts, [references]).score


def test_a_corpus_score_is_no_mean():
    figures = [score(metrics.bleu("to"), [record], [text]) for record, text in zip(RECORDS, TEXTS, strict=True)]
    assert abs(score(metrics.bleu("to"), RECORDS, TEXTS) - np.mean(figures)) > 1


def test_a_resample_is_the_corpus_it_draws():
    weights = [2, 0, 1, 1]
    drawn = [place for place, count in enumerate(weights) for _ in range(count)]
    texts, references = [TEXTS[place] for place in drawn], [TRUE[place] for place in drawn]
    for metric, whole in ((metrics.bleu("to"), sacrebleu.corpus_bleu), (metrics.chrf("to"), sacrebleu.corpus_chrf)):
        rows = [metric.statistics(record, text) for record, text in zip(RECORDS, TEXTS, strict=True)]
        assert metric.value(np.array(weights, float) @ np.array(rows, float)) == whole(texts, [references]).score


def test_chinese_is_cut_into_characters():
    references, texts = ["我喜欢这只狗。"], ["我喜欢那只猫。"]
    expected = sacrebleu.corpus_bleu(texts, [references], tokenize="zh").score
    found = score(metrics.bleu("to", "zh"), [{"to": references[0]}], texts)
    assert found == expected and found > 1.2 * score(metrics.bleu("to"), [{"to": references[0]}], texts)


@pytest.mark.parametrize("kind", ["1", "2", "L"])
def test_rouge_is_the_mean_of_f_measures(kind):
    scorer = rouge.RougeScorer([f"rouge{kind}"], use_stemmer=True)
    each = [scorer.score(true, text)[f"rouge{kind}"].fmeasure for true, text in zip(TRUE, TEXTS, strict=True)]
    assert score(metrics.rouge(kind, "to"), RECORDS, TEXTS) == pytest.approx(100 * np.mean(each))
    assert score(metrics.rouge(kind, "to"), RECORDS, TRUE) == metrics.rouge(kind, "to").highest == 100.0


def test_rouge_by_hand():
    # The stems of "a dog runs" are those of "a dog running": 3 of 3 and 3 of 4 words, 2 of 2 and 2 of 3 pairs.
    records, texts = [{"to": "a dog runs"}], ["a dog running away"]
    assert score(metrics.rouge("1", "to"), records, texts) == pytest.approx(600 / 7)
    assert score(metrics.rouge("2", "to"), records, texts) == pytest.approx(80.0)


def test_the_signatures_are_sacrebleus_own():
    for metric, own in ((metrics.bleu("to"), sacrebleu.BLEU()), (metrics.chrf("to"), sacrebleu.CHRF())):
        own.corpus_score(TEXTS, [TRUE])
        assert str(own.get_signature()) in metric.definition


@pytest.mark.parametrize(
    ("make", "package"),
    [
        (lambda: metrics.bleu("to"), "sacrebleu"),
        (lambda: metrics.chrf("to"), "sacrebleu"),
        (lambda: metrics.rouge("2", "to"), "rouge-score"),
    ],
)
def test_a_missing_package_is_told_of_at_once(monkeypatch, make, package):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(UserError, match=f"needs {package}.*pip install -e '.\\[eval\\]'"):
        make()


def test_a_mean_over_some_records():
    records = [{"n": 1, "in": True}, {"n": 0, "in": True}, {"n": 1, "in": False}]
    whole = metrics.mean("m", "M.", lambda record, _: float(record["n"]), highest=100.0)
    part = metrics.mean("m", "M.", lambda record, _: float(record["n"]), where=lambda record: record["in"])
    assert score(whole, records, [""] * 3) == pytest.approx(200 / 3) and score(part, records, [""] * 3) == 0.5
    assert math.isnan(score(part, records[2:], [""])) and math.isnan(score(whole, [], []))


@pytest.mark.parametrize(
    ("text", "references", "exact", "f1"),
    [
        (" The Eiffel-Tower. ", ["eiffeltower"], 1, 1.0),
        ("the cat sat", ["cat sat down"], 0, 0.8),  # 2 of 2 and 2 of 3 words
        ("cat cat", ["cat", "a dog"], 0, 2 / 3),  # a word counts as often as both have it
        ("a theatre", ["theatre an"], 1, 1.0),  # articles are whole words
        ("", ["Paris"], 0, 0.0),
        ("the", [""], 1, 1.0),
        ("Paris", [""], 0, 0.0),
    ],
)
def test_answers_are_compared_as_squads(text, references, exact, f1):
    assert answers.exact(text, references) == exact and answers.f1(text, references) == pytest.approx(f1)


def test_plain_keeps_articles_and_blanks():
    assert answers.plain("The  U.S.A.!") == "the  usa"
