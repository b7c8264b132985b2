"""Grade-school mathematics: GSM8K (Cobbe et al., 2021, arXiv 2110.14168)."""

import re
from collections.abc import Callable
from typing import Any

from cascades.evaluation.tasks import hub, metrics, reading
from cascades.evaluation.tasks.contract import HARNESS, Metric, Task

_FINAL = re.compile(r"#### (-?[0-9.,]+)")
_NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
_FIELDS = {"question": reading.TEXT, "answer": reading.TEXT}


def gsm8k(
    *,
    path: str | None = None,
    limit: int | None = None,
    shots: int = 5,
    shots_path: str | None = None,
    chat: bool = False,
    max_new_tokens: int = 256,
) -> Task:
    """Returns GSM8K: worded problems whose answer is a number.

    A chat model is asked with `chat = True` and `shots = 0`; it then ends its answer as it likes, so that the last
    number counts, and it may need more tokens.

    Args:
      path: a JSONL file with `question` and `answer`, which ends in "#### " and the number; the test split of
        openai/gsm8k by default. limit: the first examples alone. shots: solved examples before each prompt.
      shots_path: where they stand, the first of it; the training split by default. chat: whether the prompt goes into
        the model's chat template. max_new_tokens: of an answer.

    Raises:
      UserError: a knob is not what it should be.
    """
    choice = reading.Choice(path, limit, max_new_tokens, chat, shots, shots_path)
    rows = hub.kept("question", "answer")
    data = reading.Data(
        "gsm8k",
        _FIELDS,
        hub.Source("openai/gsm8k", "main", "test", rows),
        hub.Source("openai/gsm8k", "main", "train", rows),
    )
    layout = reading.Layout(
        lambda record: f"Question: {record['question']}\nAnswer:", lambda record: f" {record['answer']}"
    )
    strict, flexible = _metric("strict", _strict), _metric("flexible", _flexible)
    return Task(
        name="gsm8k",
        source=(
            f"Prompt, stops and both metrics of task gsm8k, version 3, in {HARNESS}, which draws its {shots or 5} "
            "examples at random for each question where we show the first of the training split in all, and which "
            "makes them turns of a conversation under a chat template where we put them into one; strict match is the "
            "headline where examples show the form of an answer, flexible match where none do (the harness has "
            "gsm8k_cot_zeroshot for that, with another prompt)."
        ),
        metrics=(strict, flexible) if shots else (flexible, strict),
        stop=("Question:", "</s>", "<|im_end|>"),
        **reading.asked(data, choice, layout),
    )


def _metric(kind: str, find: Callable[[str], str | None]) -> Metric:
    which = {"strict": 'the first number after "#### "', "flexible": "the last number"}[kind]

    def scorer(record: dict[str, Any], text: str) -> float:
        found = find(text)
        return float(found is not None and _plain(found) == _plain(record["answer"]))

    definition = (
        f"Share of answers in which {which} is the reference's, as written but for thousands separators, dollar signs "
        f"and a full stop at the end ({kind} match of gsm8k in {HARNESS})."
    )
    return metrics.mean(f"exact match ({kind})", definition, scorer)


def _strict(text: str) -> str | None:
    found = _FINAL.search(text)
    return found[1] if found else None


def _flexible(text: str) -> str | None:
    found = _NUMBER.findall(text)
    return found[-1] if found else None


def _plain(text: str) -> str:
    """A number as it is compared: without separators, without what goes before it in a reference, no full stop."""
    text = text.replace(",", "").replace("$", "").rpartition("#### ")[2]
    return text.removesuffix(".").strip().lower()
