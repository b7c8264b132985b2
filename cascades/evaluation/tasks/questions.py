"""Questions with short answers: SQuAD 2.0, TriviaQA, Natural Questions (open) and WebQuestions."""

import re
from collections.abc import Callable
from typing import Any

from cascades.evaluation.tasks import answers, hub, metrics, reading
from cascades.evaluation.tasks.contract import HARNESS, Metric, Task

_UNANSWERABLE = "unanswerable"
_NQ_ARTICLES = re.compile(r"\b(?:The |the |An |A |a |an )")
_ENDS = ("\n", ".", ",")  # of an answer in one short phrase

_SQUAD_SCRIPT = "as the evaluation script of SQuAD 2.0 (Rajpurkar et al., 2018) normalizes both"


def squad_v2(
    *,
    path: str | None = None,
    limit: int | None = None,
    shots: int = 0,
    shots_path: str | None = None,
    chat: bool = False,
    max_new_tokens: int = 256,
) -> Task:
    """Returns SQuAD 2.0: questions about a paragraph, of which some have no answer in it.

    Args:
      path: a JSONL file with `title`, `context`, `question` and the list `answers`, empty where there is none; the
        validation split of rajpurkar/squad_v2 by default. shots_path: of the same kind; the training split by default.
      limit, shots, chat, max_new_tokens: as in `gsm8k`.

    Raises:
      UserError: a knob is not what it should be.
    """
    choice = reading.Choice(path, limit, max_new_tokens, chat, shots, shots_path)
    fields = dict.fromkeys(("title", "context", "question"), reading.TEXT) | {"answers": reading.SOME_TEXTS}
    asked, shown = (hub.Source("rajpurkar/squad_v2", None, split, hub.squad) for split in ("validation", "train"))
    data = reading.Data("squad_v2", fields, asked, shown)
    layout = reading.Layout(
        lambda record: (
            f"Title: {record['title']}\n\nBackground: {record['context']}\n\nQuestion: {record['question']}\n\nAnswer:"
        ),
        lambda record: f" {(record['answers'] or [_UNANSWERABLE])[0]}",
    )

    def exact(record: dict[str, Any], text: str) -> float:
        return answers.exact(_said(text), _spans(record))

    def f1(record: dict[str, Any], text: str) -> float:
        return answers.f1(_said(text), _spans(record))

    same = f"Share of answers that are a reference, or say that there is none where there is none, {_SQUAD_SCRIPT}"
    words = f"Mean F1 of the words shared with the best reference, {_SQUAD_SCRIPT}"
    return Task(
        name="squadv2",
        source=(
            f"Prompt, stop and metrics of task squadv2, version 3, in {HARNESS}, where an answer counts as none only "
            'if it is empty, and here also if it is "unanswerable", as the prompt\'s examples say it; its metrics that '
            "need the probability of that word are left out."
        ),
        metrics=(
            metrics.mean("exact match", f"{same}.", exact),
            metrics.mean("F1", f"{words}; 1 for none where there is none.", f1),
            metrics.mean("F1 (answerable)", f"{words}, of questions with an answer.", f1, where=_answerable),
            metrics.mean(
                "exact match (unanswerable)",
                f"{same}, of questions without an answer.",
                exact,
                where=lambda record: not _answerable(record),
            ),
        ),
        stop=("\n",),
        **reading.asked(data, choice, layout),
    )


def triviaqa(
    *,
    path: str | None = None,
    limit: int | None = None,
    shots: int = 0,
    shots_path: str | None = None,
    chat: bool = False,
    max_new_tokens: int = 256,
) -> Task:
    """Returns TriviaQA without its documents.

    Args:
      path: a JSONL file with `question` and the list `answers`, all aliases; the validation split of
        mandarjoshi/trivia_qa, rc.nocontext, by default. shots_path: of the same kind; the training split by default.
      limit, shots, chat, max_new_tokens: as in `gsm8k`.

    Raises:
      UserError: a knob is not what it should be.
    """
    choice = reading.Choice(path, limit, max_new_tokens, chat, shots, shots_path)
    repository = "mandarjoshi/trivia_qa"
    asked, shown = (hub.Source(repository, "rc.nocontext", split, hub.trivia) for split in ("validation", "train"))
    data = reading.Data("triviaqa", {"question": reading.TEXT, "answers": reading.TEXTS}, asked, shown)
    # The harness adds a question mark to those that the questions have.
    layout = reading.Layout(
        lambda record: f"Question: {record['question']}?\nAnswer:", lambda record: f" {record['answers'][0]}"
    )

    def exact(record: dict[str, Any], text: str) -> float:
        return float(answers.plain(text.strip()) in map(answers.plain, record["answers"]))

    same = f"Share of answers that are an alias, case and punctuation aside (exact match of triviaqa in {HARNESS})."
    return Task(
        name="triviaqa",
        source=f"Prompt, stops and exact match of task triviaqa, version 3, in {HARNESS}{_added(shots)}.",
        metrics=(metrics.mean("exact match", same, exact), _f1("answers")),
        stop=_ENDS,
        **reading.asked(data, choice, layout),
    )


def nq_open(
    *,
    path: str | None = None,
    limit: int | None = None,
    shots: int = 0,
    shots_path: str | None = None,
    chat: bool = False,
    max_new_tokens: int = 256,
) -> Task:
    """Returns the open version of Natural Questions.

    Args:
      path: a JSONL file with `question` and the list `answer`; the validation split of
        google-research-datasets/nq_open by default. shots_path: of the same kind; the training split by default.
      limit, shots, chat, max_new_tokens: as in `gsm8k`.

    Raises:
      UserError: a knob is not what it should be.
    """
    choice = reading.Choice(path, limit, max_new_tokens, chat, shots, shots_path)
    rows, repository = hub.kept("question", "answer"), "google-research-datasets/nq_open"
    asked, shown = (hub.Source(repository, None, split, rows) for split in ("validation", "train"))
    data = reading.Data("nq_open", {"question": reading.TEXT, "answer": reading.TEXTS}, asked, shown)
    layout = reading.Layout(
        lambda record: f"Q: {record['question']}?\nA:",
        lambda record: f" {record['answer'][0]}",
        before="Answer these questions:\n\n",
        between="\n",
    )

    def exact(record: dict[str, Any], text: str) -> float:
        return float(_nq(text.strip()) in map(_nq, record["answer"]))

    same = (
        "Share of answers that are a reference, articles, case and punctuation aside (exact match of nq_open in "
        f"{HARNESS})."
    )
    return Task(
        name="nq_open",
        source=f"Prompt, stops and exact match of task nq_open, version 4, in {HARNESS}{_added(shots)}.",
        metrics=(metrics.mean("exact match", same, exact), _f1("answer")),
        stop=_ENDS,
        **reading.asked(data, choice, layout),
    )


def webquestions(
    *,
    path: str | None = None,
    limit: int | None = None,
    shots: int = 0,
    shots_path: str | None = None,
    chat: bool = False,
    max_new_tokens: int = 256,
) -> Task:
    """Returns WebQuestions (Berant et al., 2013).

    Args:
      path: a JSONL file with `question` and the list `answers`; the test split of stanfordnlp/web_questions by
        default. shots_path: of the same kind; the training split by default.
      limit, shots, chat, max_new_tokens: as in `gsm8k`.

    Raises:
      UserError: a knob is not what it should be.
    """
    choice = reading.Choice(path, limit, max_new_tokens, chat, shots, shots_path)
    rows = hub.kept("question", "answers")
    asked, shown = (hub.Source("stanfordnlp/web_questions", None, split, rows) for split in ("test", "train"))
    data = reading.Data("webquestions", {"question": reading.TEXT, "answers": reading.TEXTS}, asked, shown)
    layout = reading.Layout(
        lambda record: f"Question: {record['question']}\nAnswer:", lambda record: f" {record['answers'][0]}"
    )
    same = "Share of answers that are a reference, as the evaluation script of SQuAD normalizes both."
    return Task(
        name="webqs",
        source=(
            f"Prompt of task webqs, version 2, in {HARNESS}, which asks whether a reference is what the model would "
            "write next, where we let it write, up to the stops of triviaqa, and compare; F1 is added."
        ),
        metrics=(
            metrics.mean("exact match", same, lambda record, text: answers.exact(text, record["answers"])),
            _f1("answers"),
        ),
        stop=_ENDS,
        **reading.asked(data, choice, layout),
    )


def _f1(field: str) -> Metric:
    definition = (
        "Mean F1 of the words shared with the best reference, as the evaluation script of SQuAD normalizes both."
    )
    scorer: Callable[[dict[str, Any], str], float] = lambda record, text: answers.f1(text, record[field])  # noqa: E731
    return metrics.mean("F1", definition, scorer)


def _added(shots: int) -> str:
    drawn = ", which draws its examples at random where we show the first of the training split" if shots else ""
    return f"{drawn}; F1 is added"


def _answerable(record: dict[str, Any]) -> bool:
    return bool(record["answers"])


def _spans(record: dict[str, Any]) -> list[str]:
    """The references, but for those of which nothing is left; an empty one where there are none."""
    return [answer for answer in record["answers"] if answers.normalized(answer)] or [""]


def _said(text: str) -> str:
    return "" if answers.normalized(text) == _UNANSWERABLE else text


def _nq(text: str) -> str:
    return answers.plain(_NQ_ARTICLES.sub("", text))
