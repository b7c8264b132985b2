"""Requests of many kinds to a chat model: Spec-Bench (Xia et al., 2024, arXiv 2401.07851)."""

from cascades.errors import UserError
from cascades.evaluation.tasks import reading
from cascades.evaluation.tasks.contract import Example, Task

_FIELDS = {"category": reading.TEXT, "turns": reading.TEXTS}


def spec_bench(
    *,
    path: str | None = None,
    limit: int | None = None,
    category: str | None = None,
    chat: bool = True,
    max_new_tokens: int = 1024,
) -> Task:
    """Returns Spec-Bench, a set of requests by which speculative decoding is timed; its answers have no score.

    Args:
      path: its question.jsonl, with `question_id`, `category` and `turns`; there is none on the hub.
      category: asks those of one alone, such as "translation"; records keep theirs, so that results can be grouped.
      limit, chat, max_new_tokens: as in `gsm8k`.

    Raises:
      UserError: a knob is not what it should be.
    """
    choice = reading.Choice(path, limit, max_new_tokens, chat)
    if category is not None and (not isinstance(category, str) or not category):
        raise UserError(f"spec_bench.category must be the name of one, in quotes, or None, not {category!r}")
    data = reading.Data("spec_bench", _FIELDS, None, id="question_id")
    layout = reading.Layout(lambda record: record["turns"][0])

    def examples() -> list[Example]:
        found = reading.examples(data, choice._replace(limit=None), layout)
        known = sorted({example.record["category"] for example in found})
        if category not in (None, *known):
            raise UserError(f"spec_bench.category must be one of {path}'s, {', '.join(known)}, not {category!r}")
        return [example for example in found if category in (None, example.record["category"])][:limit]

    return Task(
        name="spec_bench",
        source=(
            "Requests of Spec-Bench (github.com/hemingkx/Spec-Bench), the first turn of each alone, where its own runs "
            "go on to the second of the conversations among them."
        ),
        metrics=(),
        stop=(),
        **reading.asked(data, choice, layout),
    )._replace(examples=examples)
