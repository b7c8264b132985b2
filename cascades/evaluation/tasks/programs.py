"""Programs that are written and then run: HumanEval (arXiv 2107.03374) and MBPP (arXiv 2108.07732)."""

import re
from collections.abc import Callable
from typing import Any

from cascades.evaluation.tasks import hub, metrics, reading
from cascades.evaluation.tasks.contract import HARNESS, Metric, Task

_SECONDS = 10.0
_BLOCK = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)  # the last may be cut before its fence
_SHOWN_TESTS = 3  # in a prompt of MBPP

_HUMANEVAL = {"prompt": reading.TEXT, "test": reading.TEXT, "entry_point": reading.TEXT}
_MBPP = {"text|prompt": reading.TEXT, "code": reading.TEXT, "test_list": reading.TEXTS}


def humaneval(
    *, path: str | None = None, limit: int | None = None, chat: bool = False, max_new_tokens: int = 1024
) -> Task:
    """Returns HumanEval for models that continue a text: the body of a function from its head and docstring.

    Args:
      path: a JSONL file with `task_id`, `prompt`, `test` and `entry_point`; openai/openai_humaneval by default.
      limit, chat, max_new_tokens: as in `gsm8k`.

    Raises:
      UserError: a knob is not what it should be.
    """
    choice = reading.Choice(path, limit, max_new_tokens, chat)
    data, layout = _humaneval("humaneval"), reading.Layout(lambda record: record["prompt"])
    return Task(
        name="humaneval",
        source=f"Prompt, stops and metric of task humaneval, version 1, in {HARNESS}.",
        metrics=(_pass("the prompt and its completion", _completed),),
        stop=("\nclass", "\ndef", "\n#", "\nif", "\nprint"),
        **reading.asked(data, choice, layout),
    )


def humaneval_instruct(
    *, path: str | None = None, limit: int | None = None, chat: bool = True, max_new_tokens: int = 1024
) -> Task:
    """Returns HumanEval for chat models: the function is asked for in words, and the answer's code block counts.

    Args:
      path, limit, chat, max_new_tokens: as in `humaneval`.

    Raises:
      UserError: a knob is not what it should be.
    """
    choice = reading.Choice(path, limit, max_new_tokens, chat)
    data = _humaneval("humaneval_instruct")
    layout = reading.Layout(
        lambda record: (
            "Write a solution to the following problem and make sure that it passes the tests:\n"
            f"```python\n{record['prompt']}\n```\n"
        )
    )

    def program(record: dict[str, Any], text: str) -> str:
        return _completed(record, _block(text, f"def {record['entry_point']}"))

    return Task(
        name="humaneval_instruct",
        source=(
            f"Prompt and metric of task humaneval_instruct, version 4, in {HARNESS}, which begins the model's own turn "
            "with the head of the function and ends it at the stops of humaneval, where we let the model begin, stop "
            "nowhere and take the code block that defines the function, or else the first, behind the prompt."
        ),
        metrics=(_pass("the prompt and the answer's code block", program),),
        stop=(),
        **reading.asked(data, choice, layout),
    )


def mbpp(
    *,
    path: str | None = None,
    limit: int | None = None,
    shots: int = 3,
    shots_path: str | None = None,
    chat: bool = False,
    max_new_tokens: int = 256,
) -> Task:
    """Returns MBPP for models that continue a text: a function from a sentence and its tests.

    Args:
      path: a JSONL file with `task_id`, `text` (or `prompt`, as in the sanitized version), `code`, `test_list` and,
        if at all, `test_imports` or `test_setup_code`; the test split of google-research-datasets/mbpp by default.
      shots_path: of the same kind, whose first lines but for task 1 are shown; the prompt split by default.
      limit, shots, chat, max_new_tokens: as in `gsm8k`.

    Raises:
      UserError: a knob is not what it should be.
    """
    choice = reading.Choice(path, limit, max_new_tokens, chat, shots, shots_path)
    layout = reading.Layout(
        lambda record: (
            f"You are an expert Python programmer, and here is your task: {_wanted(record)} Your code should pass "
            f"these tests:\n\n{_tests(record)}\n[BEGIN]\n"
        ),
        lambda record: f"{record['code']}\n[DONE]",
    )
    return Task(
        name="mbpp",
        source=(
            f"Prompt, examples (tasks 2, 3 and 4), stop and metric of task mbpp, version 1, in {HARNESS}; all tests of "
            "a line are run, behind its imports, where the harness runs the three of the prompt and no imports."
        ),
        metrics=(_pass("the answer", _tested),),
        stop=("[DONE]",),
        # The harness shows tasks 2, 3 and 4 of the full version, which in either version are the first after task 1.
        **reading.asked(_mbpp("mbpp"), choice, layout, lambda record: record.get("task_id") != 1),
    )


def mbpp_instruct(
    *, path: str | None = None, limit: int | None = None, chat: bool = True, max_new_tokens: int = 256
) -> Task:
    """Returns MBPP for chat models, without examples; the first code block of the answer counts.

    Args:
      path, limit, chat, max_new_tokens: as in `mbpp`.

    Raises:
      UserError: a knob is not what it should be.
    """
    choice = reading.Choice(path, limit, max_new_tokens, chat)
    layout = reading.Layout(
        lambda record: (
            f"You are an expert Python programmer, and here is your task:\n{_wanted(record)}\n"
            f"Your code should pass these tests:\n{_tests(record)}"
        )
    )
    return Task(
        name="mbpp_instruct",
        source=(
            f"Prompt and metric of task mbpp_instruct, version 1, in {HARNESS}, which shows three examples and begins "
            "the model's own turn with a code block, where we do neither, and take an answer without a block whole."
        ),
        metrics=(_pass("the answer's first code block", lambda record, text: _tested(record, _block(text))),),
        stop=(),
        **reading.asked(_mbpp("mbpp_instruct"), choice, layout),
    )


def _humaneval(factory: str) -> reading.Data:
    rows = hub.kept("task_id", "prompt", "canonical_solution", "test", "entry_point")
    return reading.Data(factory, _HUMANEVAL, hub.Source("openai/openai_humaneval", None, "test", rows), id="task_id")


def _mbpp(factory: str) -> reading.Data:
    rows = hub.kept("task_id", "text", "code", "test_list", "test_setup_code")
    repository = "google-research-datasets/mbpp"
    asked, shown = (hub.Source(repository, "full", split, rows) for split in ("test", "prompt"))
    return reading.Data(factory, _MBPP, asked, shown, id="task_id")


def _pass(what: str, program: Callable[[dict[str, Any], str], str]) -> Metric:
    def scorer(record: dict[str, Any], text: str) -> float:
        from cascades.evaluation.sandbox import run_program

        return float(run_program(program(record, text), seconds=_SECONDS).passed)

    definition = (
        f"pass@1 (Chen et al., 2021) of one answer a problem: the share of programs, {what} and then the tests, that "
        f"end without an error within {_SECONDS:g} s in our sandbox."
    )
    return metrics.mean("pass@1", definition, scorer)


def _completed(record: dict[str, Any], text: str) -> str:
    # A function whose body is its docstring is complete, so that a whole definition may follow the prompt as well as
    # a body does, and finds its imports and helpers there.
    return f"{record['prompt']}{text}\n{record['test']}\ncheck({record['entry_point']})"


def _tested(record: dict[str, Any], text: str) -> str:
    before = [*record.get("test_imports", ()), record.get("test_setup_code", "")]
    return "\n".join([*(line for line in before if line), text, *record["test_list"]])


def _block(text: str, holds: str = "") -> str:
    """The first code block that holds a text, or else the first; the whole text where there is no block."""
    blocks = _BLOCK.findall(text)
    return next((block for block in blocks if holds in block), blocks[0] if blocks else text)


def _wanted(record: dict[str, Any]) -> str:
    return record["text"] if "text" in record else record["prompt"]


def _tests(record: dict[str, Any]) -> str:
    return "\n".join(record["test_list"][:_SHOWN_TESTS])
