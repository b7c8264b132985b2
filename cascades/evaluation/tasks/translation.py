"""Translation: the test sets of WMT, and Multi30k (Elliott et al., 2016)."""

from cascades import checks
from cascades.errors import UserError
from cascades.evaluation.tasks import hub, metrics, reading
from cascades.evaluation.tasks.contract import HARNESS, Task

_LANGUAGES = {
    "cs": "Czech",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fi": "Finnish",
    "fr": "French",
    "hi": "Hindi",
    "it": "Italian",
    "lv": "Latvian",
    "ro": "Romanian",
    "ru": "Russian",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "zh": "Chinese",
}
_PLACE = "{source}"


def wmt(
    *,
    source: str = "en",
    target: str = "de",
    test_set: str = "wmt14",
    split: str = "test",
    source_field: str | None = None,
    target_field: str | None = None,
    template: str | None = None,
    path: str | None = None,
    limit: int | None = None,
    shots: int = 0,
    shots_path: str | None = None,
    chat: bool = False,
    max_new_tokens: int = 256,
) -> Task:
    """Returns the translation of sentences of a WMT test set, or of a file.

    Args:
      source, target: codes of two languages. test_set: of WMT, such as "wmt16", which names the task and, without a
        `path`, the data set of the hub, wmt/wmt16, of which `split` is asked: test, validation or train.
      source_field, target_field: of a line, in which the sentence and its translation stand; the codes by default.
      template: the prompt, with "{source}" where the sentence stands, as in "translate English to German: {source}";
        the harness's by default.
      path: a JSONL file with both fields; the hub's split by default. shots_path: of the same kind; the validation
        split by default. limit, shots, chat, max_new_tokens: as in `gsm8k`.

    Raises:
      UserError: a knob is not what it should be, or sacrebleu is not installed.
    """
    checks.one_of("wmt.source", source, tuple(_LANGUAGES))
    checks.one_of("wmt.target", target, tuple(_LANGUAGES))
    if source == target:
        raise UserError(f"wmt.source and wmt.target must be two languages, not {source!r} both")
    if not isinstance(test_set, str) or not test_set:
        raise UserError(f"wmt.test_set must be the name of a test set, as in 'wmt14', not {test_set!r}")
    checks.one_of("wmt.split", split, hub.SPLITS)
    usual = f"{_LANGUAGES[source]} phrase: {_PLACE}\n{_LANGUAGES[target]} phrase:"
    from_hub = source_field in (None, source) and target_field in (None, target)
    pair = f"{target}-{source}" if source == "en" else f"{source}-{target}"
    asked, shown = (
        hub.Source(f"wmt/{test_set}", pair, each, hub.translation(source, target)) for each in (split, "validation")
    )
    data = reading.Data(
        "wmt",
        {source_field or source: reading.TEXT, target_field or target: reading.TEXT},
        asked if from_hub else None,
        shown if from_hub else None,
    )
    choice = reading.Choice(path, limit, max_new_tokens, chat, shots, shots_path)
    return _translation(
        name=f"{test_set}-{source}-{target}",
        whose=f"Prompt, stop and metrics of the translation tasks, version 1, in {HARNESS}, TER left out",
        data=data,
        choice=choice,
        target=target,
        template=template,
        usual=usual,
        stop=("\n",),
    )


def multi30k(
    *,
    source: str = "en",
    target: str = "de",
    template: str | None = None,
    path: str | None = None,
    limit: int | None = None,
    chat: bool = False,
    max_new_tokens: int = 128,
) -> Task:
    """Returns the translation of image captions, for models that were trained on nothing else: the sentence is the
    prompt.

    Args:
      path: a JSONL file with fields named as the two languages; the 2016 test set of bentrevett/multi30k, English and
        German, by default.
      source, target, template, limit, chat, max_new_tokens: as in `wmt`; the template is "{source}" by default.

    Raises:
      UserError: a knob is not what it should be, or sacrebleu is not installed.
    """
    checks.one_of("multi30k.source", source, tuple(_LANGUAGES))
    checks.one_of("multi30k.target", target, tuple(_LANGUAGES))
    if source == target:
        raise UserError(f"multi30k.source and multi30k.target must be two languages, not {source!r} both")
    known = hub.Source("bentrevett/multi30k", None, "test", hub.kept(source, target))
    data = reading.Data(
        "multi30k",
        {source: reading.TEXT, target: reading.TEXT},
        known if {source, target} == {"en", "de"} else None,
    )
    return _translation(
        name=f"multi30k-{source}-{target}",
        whose=f"No task of {HARNESS}: the sentence is the prompt, and the metrics are those of its translation tasks",
        data=data,
        choice=reading.Choice(path, limit, max_new_tokens, chat),
        target=target,
        template=template,
        usual=_PLACE,
        stop=(),
    )


def _translation(
    *,
    name: str,
    whose: str,
    data: reading.Data,
    choice: reading.Choice,
    target: str,
    template: str | None,
    usual: str,
    stop: tuple[str, ...],
) -> Task:
    if template is not None and (not isinstance(template, str) or _PLACE not in template):
        raise UserError(
            f"{data.factory}.template must be a text with {_PLACE} where the sentence stands, not {template!r}"
        )
    if len(data.fields) < 2:
        raise UserError(f"{data.factory} needs a field of its own for the sentence and for its translation, not one")
    sentence, reference = data.fields
    before, _, after = (template or usual).partition(_PLACE)
    layout = reading.Layout(lambda record: f"{before}{record[sentence]}{after}", lambda record: f" {record[reference]}")
    own = "; the prompt is the user's" if template is not None else ""
    first = "; examples are the first of their split, not drawn at random" if choice.shots else ""
    return Task(
        name=name,
        source=f"{whose}{own}{first}.",
        metrics=(metrics.bleu(reference, "zh" if target == "zh" else "13a"), metrics.chrf(reference)),
        stop=stop,
        **reading.asked(data, choice, layout),
    )
