"""Answers of a clock run as Spec-Bench's own scripts write and read them (Xia et al., 2024, arXiv 2401.07851).

Source: evaluation/eval.py and evaluation/speed.py of github.com/hemingkx/Spec-Bench, commit fd2c1cd.
"""

import json
import pathlib
import re
import time
from collections.abc import Sequence
from typing import Any

from cascades.errors import UserError
from cascades.evaluation.tasks.contract import Task
from cascades.generation import Settings
from cascades.runs import fingerprint

TASK = "spec_bench"


def check(tasks: Sequence[Task], clock: bool, settings: Settings) -> None:
    """Raises a UserError unless this is a clock run of Spec-Bench's questions, each alone."""
    if not clock or all(task.name != TASK for task in tasks):
        raise UserError(
            "SPEC_BENCH_FILES tell what a clock run of Spec-Bench timed: set TASKS to [@spec_bench()] and CLOCK to True"
        )
    if settings.batch_size != 1:
        raise UserError(f"Spec-Bench times one question at a time: set BATCH_SIZE to 1, not {settings.batch_size}")


def write(folder: pathlib.Path, lines: Sequence[dict[str, Any]], entries: Sequence[dict[str, Any]]) -> None:
    """Writes a file for each point, temperature and repeat: `model_answer_temp0_run_1/token_v3-0.3-fixed-2.jsonl`.

    There is none where a question is left to be asked: averages of other questions compare nothing.

    Args:
      entries: what was asked, see `work.Work`.
    """
    order = [entry["id"] for entry in entries if entry["task"] == TASK]
    found: dict[tuple, dict[str, dict]] = {}
    for line in lines:
        point = tuple(line[name] for name in ("rule", "alpha", "lookahead", "rule_id", "lookahead_id"))
        if line["task"] == TASK:
            found.setdefault((line["temperature"], line["repeat"], point), {})[line["prompt_id"]] = line
    names = _names([point for _, _, point in found])
    for (temperature, repeat, point), answers in found.items():
        if all(each in answers for each in order):
            run = folder / f"model_answer_temp{temperature:g}_run_{repeat + 1}"
            run.mkdir(exist_ok=True)
            told = (json.dumps(answer(answers[each], names[point]), ensure_ascii=False) for each in order)
            (run / f"{names[point]}.jsonl").write_text("".join(f"{each}\n" for each in told), encoding="utf-8")


def answer(line: dict[str, Any], model: str) -> dict[str, Any]:
    """Returns a line of results as Spec-Bench writes it, of the first turn.

    wall_time: of the whole answer, its prompt's reading included, as there.
    """
    question, stats = line["input"], line["stats"]
    lengths = accept_lengths(stats)
    choice = {
        "index": 0,
        "turns": [line["text"]],
        "decoding_steps": [len(lengths)],
        "new_tokens": [stats["tokens_out"]],
        "wall_time": [stats["wall_s"]],
        "accept_lengths": lengths,
    }
    return {
        "question_id": question.get("question_id", line["prompt_id"]),
        "category": question["category"],
        "answer_id": fingerprint.digest([model, line["run"], line["repeat"], line["prompt_id"]]),
        "model_id": model,
        "choices": [choice],
        "tstamp": time.time(),
    }


def accept_lengths(stats: dict[str, Any]) -> list[int]:
    """Returns how many tokens each round brought, which add up to the answer's.

    What is known is how many rounds kept so many drafts, and not which: the order is ours, the shortest first. A token
    of the verifier stands behind the drafts, but where the answer ended within them: that is taken off the last.
    """
    rounds = enumerate(stats["accepted_histogram"], 1)
    lengths = [length for length, count in rounds for _ in range(count)] or [1] * stats["rounds"]
    surplus = sum(lengths) - stats["tokens_out"]
    for at in reversed(range(len(lengths))):
        less = min(surplus, lengths[at])
        lengths[at] -= less
        surplus -= less
    return lengths


def _names(found: Sequence[tuple]) -> dict[tuple, str]:
    """Returns a name for each point that a file may bear, with digests where two of them would be the same."""
    plain = {}
    for point in dict.fromkeys(found):
        rule, alpha, lookahead, *_ = point
        parts = [rule, "" if alpha is None else f"{alpha:g}", lookahead]
        plain[point] = "-".join(filter(None, (re.sub(r"[^\w.-]+", "-", part).strip("-") for part in parts)))
    shared = list(plain.values())
    return {
        point: f"{name}-{fingerprint.digest(point)[:4]}" if shared.count(name) > 1 else name
        for point, name in plain.items()
    }
