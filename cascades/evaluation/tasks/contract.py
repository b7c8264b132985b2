"""What an evaluation task is: prompts, when their answers end, and metrics whose statistics add up over answers."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

HARNESS = "lm-evaluation-harness 0.4.13.dev0 (commit 4e7e0d4)"
"""The version that the sources of tasks speak of."""


class Example(NamedTuple):
    """One prompt of a task.

    id: unique in its task, and the same in every run. prompt: the whole of it, few-shot examples included. record: the
    data line, which metrics read the reference from.
    """

    id: str
    prompt: str
    record: dict[str, Any]


class Metric(NamedTuple):
    """A score of a set of answers. Higher is better.

    The score is a function of sums over answers, so that a bootstrap resamples a corpus metric such as BLEU as it does
    a mean: it adds up what each drawn answer brings.

    name: the field's own. definition: one sentence, with where it is published or the package's signature.
    statistics: of a record and the text of its answer, as it was generated up to a stop and with the blanks around it,
    numbers that are added over answers, as many for every answer; several threads may call it at once. value: from
    those sums, shape [statistics], to the score; nan where it is not defined. highest: of its scale.
    """

    name: str
    definition: str
    statistics: Callable[[dict[str, Any], str], Sequence[float]]
    value: Callable[[np.ndarray], float]
    highest: float = 1.0


class Task(NamedTuple):
    """What is asked, and how answers are scored.

    name: that of lm-evaluation-harness where it has the task. source: one sentence: whose prompt, shots and metrics
    these are, and where they differ. examples: reads the data; raises a UserError of one sentence. metrics: the first
    is the headline; none where answers have no score. stop: strings that end an answer and are no part of it.
    max_new_tokens: after which an answer is cut. raw_prompt: whether the prompt goes to the model without a chat
    template around it.
    """

    name: str
    source: str
    examples: Callable[[], list[Example]]
    metrics: tuple[Metric, ...]
    stop: tuple[str, ...]
    max_new_tokens: int
    raw_prompt: bool


def score(metric: Metric, records: Sequence[dict[str, Any]], texts: Sequence[str]) -> float:
    """Returns the metric of answers to as many records; nan where it is not defined, as for none."""
    rows = [metric.statistics(record, text) for record, text in zip(records, texts, strict=True)]
    return metric.value(np.sum(np.asarray(rows, np.float64), axis=0)) if rows else float("nan")
