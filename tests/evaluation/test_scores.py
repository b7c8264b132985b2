"""Scores that a sweep knows by name."""

import gin
import pytest
import rouge_score.rouge_scorer as rouge
import sacrebleu

from cascades import config
from cascades.evaluation import scores, summary
from cascades.evaluation.summary import VERIFIER
from cascades.runs.sweep import sweep

TRUE = "A dog runs across the green field ."
LINES = [{"prompt": "a", "reference": TRUE}, {"prompt": "b", "reference": "Two men sit on a bench ."}, {"prompt": "c"}]
TEXTS = ["A dog is running across the field .", "Two men sit on a bench .", "whatever"]


def lines():
    zeros = dict.fromkeys(("accepted", "drafted", "rejected", "decided", "deferred"), 0)
    stats = {"tokens_out": 1, "verifier_calls": 1, "log_p": -1.0, "wall_s": 1.0} | zeros
    names = {"rule": VERIFIER, "rule_id": "", "lookahead": "", "lookahead_id": "", "alpha": None, "repeat": 0}
    return [
        names | {"unit": record["prompt"], "prompt_id": record["prompt"], "input": record, "text": text, "stats": stats}
        for record, text in zip(LINES, TEXTS, strict=True)
    ]


def scored(score):
    [row] = summary.summarise(lines(), score)
    return row.score


def test_a_line_without_a_reference_has_no_score():
    assert scored(scores.exact_match) == pytest.approx(1 / 2)
    expected = rouge.RougeScorer(["rougeL"], use_stemmer=True).score(TRUE, TEXTS[0])["rougeL"].fmeasure
    assert 0.5 < expected < 1 and scored(scores.rouge_l) == pytest.approx((expected + 1) / 2)
    assert scores.rouge_l(LINES[2], "x") is None and scores.bleu(LINES[2:], ["x"]) is None


def test_bleu_is_of_the_corpus():
    whole = sacrebleu.corpus_bleu(TEXTS[:2], [[line["reference"] for line in LINES[:2]]]).score
    assert scored(scores.bleu) == pytest.approx(whole) and 20 < whole < 100


@pytest.mark.parametrize("name", scores.__all__)
def test_they_go_by_their_names(name):
    config.configure(sweep, "configs/sweep.gin", [f"SCORE=@{name}"])
    assert gin.get_bindings(sweep)["score"].__name__ == name
