"""Summaries of news: XSum (Narayan et al., 2018) and CNN/DailyMail (Hermann et al., 2015; See et al., 2017)."""

import itertools
import re

from cascades import checks
from cascades.errors import UserError
from cascades.evaluation.tasks import hub, metrics, reading
from cascades.evaluation.tasks.contract import HARNESS, Task

_ROUGE = "ROUGE-2 is the headline, as in arXiv 2405.19261, and ROUGE-1 and ROUGE-L follow"


def xsum(
    *,
    split: str = "test",
    path: str | None = None,
    limit: int | None = None,
    template: str | None = None,
    words: int | None = None,
    chat: bool = False,
    max_new_tokens: int = 64,
) -> Task:
    """Returns XSum: a report of the BBC in one sentence.

    Args:
      split: of EdinburghNLP/xsum, which is asked where there is no `path`: test, validation or train.
      path: a JSONL file with `document` and `summary`.
      template: the prompt, with "{document}" where the report stands, as in "summarize: {document}".
      words: of a report that are shown, for models that hold no longer ones; None is all.
      limit, chat, max_new_tokens: as in `gsm8k`.

    Raises:
      UserError: a knob is not what it should be, or rouge-score is not installed.
    """
    data = reading.Data(
        "xsum",
        {"document": reading.TEXT, "summary": reading.TEXT},
        hub.Source("EdinburghNLP/xsum", None, split, hub.kept("id", "document", "summary")),
    )
    return _summaries(
        name="xsum",
        whose=(
            f"Prompt of our own, near to that of cnn_dailymail_abisee in {HARNESS}, which takes its prompt of xsum "
            "from the package unitxt"
        ),
        data=data,
        choice=reading.Choice(path, limit, max_new_tokens, chat),
        template=template,
        words=words,
        split=split,
        usual="Summarize the following article in one sentence:\n\n{document}\n\nSummary:",
        stop=("\n",),
    )


def cnn_dailymail(
    *,
    split: str = "test",
    path: str | None = None,
    limit: int | None = None,
    template: str | None = None,
    words: int | None = None,
    chat: bool = False,
    max_new_tokens: int = 128,
) -> Task:
    """Returns CNN/DailyMail, version 3.0.0: a report in a few sentences.

    Args:
      split: of abisee/cnn_dailymail. path: a JSONL file with `article` and `highlights`.
      template: the prompt, with "{article}" where the report stands. words: as in `xsum`.
      limit, chat, max_new_tokens: as in `gsm8k`.

    Raises:
      UserError: a knob is not what it should be, or rouge-score is not installed.
    """
    data = reading.Data(
        "cnn_dailymail",
        {"article": reading.TEXT, "highlights": reading.TEXT},
        hub.Source("abisee/cnn_dailymail", "3.0.0", split, hub.kept("id", "article", "highlights")),
    )
    return _summaries(
        name="cnn_dailymail_abisee",
        whose=f"Prompt and ROUGE of task cnn_dailymail_abisee, version 1, in {HARNESS}, BERTScore left out",
        data=data,
        choice=reading.Choice(path, limit, max_new_tokens, chat),
        template=template,
        words=words,
        split=split,
        usual="Summarize the following article:\n\n{article}\n\nSummary:",
        stop=(),
    )


def _summaries(
    *,
    name: str,
    whose: str,
    data: reading.Data,
    choice: reading.Choice,
    template: str | None,
    words: int | None,
    split: str,
    usual: str,
    stop: tuple[str, ...],
) -> Task:
    checks.one_of(f"{data.factory}.split", split, hub.SPLITS)
    if words is not None:
        checks.whole(f"{data.factory}.words", words, 1)
    report, reference = data.fields
    place = f"{{{report}}}"
    if template is not None and (not isinstance(template, str) or place not in template):
        raise UserError(
            f"{data.factory}.template must be a text with {place} where the report stands, not {template!r}"
        )
    before, _, after = (template or usual).partition(place)
    own = "; the prompt is the user's" if template is not None else ""
    cut = f"; of a report the first {words} words are shown" if words is not None else ""
    layout = reading.Layout(lambda record: f"{before}{_first(record[report], words)}{after}")
    return Task(
        name=name,
        source=f"{whose}{own}{cut}; {_ROUGE}, times 100.",
        metrics=tuple(metrics.rouge(kind, reference) for kind in ("2", "1", "L")),
        stop=stop,
        **reading.asked(data, choice, layout),
    )


def _first(text: str, words: int | None) -> str:
    """A text up to the end of so many words, with the spaces and lines between them as they are."""
    if words is None:
        return text
    ends = [word.end() for word in itertools.islice(re.finditer(r"\S+", text), words)]
    return text[: ends[-1]]
