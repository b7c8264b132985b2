"""The outcome of clock runs: a table, a CSV file, pictures and a page for each task and temperature."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from cascades.errors import UserError
from cascades.evaluation import summary
from cascades.evaluation.summary import Row, Score
from cascades.evaluation.tasks import contract
from cascades.evaluation.tasks.contract import Task
from cascades.runs import report, terminal


def tell(
    lines: Sequence[dict[str, Any]],
    asked: Sequence[Task],
    score: Score | None,
    folder: pathlib.Path,
    title: str,
    about: dict[str, Any],
    repeats: int,
    err: Console,
) -> list[Row]:
    """Prints and writes what the lines say, and returns its rows.

    Args:
      lines: of clock runs. asked: their tasks. score: of answers to a file of prompts. about: what the lines share.
    """
    told: list[Row] = []
    for task in asked:
        of_task = [line for line in lines if line["task"] == task.name]
        judged = _score(task, score)
        for temperature in dict.fromkeys(line["temperature"] for line in of_task):
            part = [line for line in of_task if line["temperature"] == temperature]
            rows = summary.summarise(part, judged)
            several = len(asked) > 1 or len({line["temperature"] for line in of_task}) > 1
            name = f"sweep.{task.name or 'prompts'}.{temperature:g}" if several else "sweep"
            heading = f"{title}, {task.name}" if task.name else title
            out, _ = terminal.consoles()
            if several:
                out.print(f"\n{task.name} at temperature {temperature:g}", style="bold", highlight=False)
            _by_category(part, judged)
            _write(rows, folder, name, heading, _notes(about, temperature, rows, repeats), err)
            told += rows
    return told


def _score(task: Task, score: Score | None) -> Score | None:
    """Returns the first metric of a task as a score of whole texts; that of a file with its failures as sentences."""
    if task.name and task.metrics:

        def metric(records: Any, texts: Any) -> float | None:
            value = contract.score(task.metrics[0], records, texts)
            return None if math.isnan(value) else value

        metric.whole = True  # pyright: ignore[reportFunctionMemberAccess]
        return metric
    if score is None or task.name:
        return None

    def guarded(records: Any, texts: Any) -> float | None:
        try:
            return score(records, texts)
        except UserError:
            raise
        except Exception as error:  # whatever a function of the user's own does
            raise UserError(
                f"SCORE fails on an answer ({error!r:.200}): mend it and run the same command again, which decodes "
                "nothing that is there already"
            ) from error

    guarded.whole = getattr(score, "whole", False)  # pyright: ignore[reportFunctionMemberAccess]
    return guarded


def _notes(about: dict[str, Any], temperature: float, rows: Sequence[Row], repeats: int) -> list[str]:
    platform, kind, count = about["device"]
    prompts = rows[0].prompts
    infinite = any(row.alpha is not None and math.isinf(row.alpha) for row in rows)
    return [
        f"{prompts} prompts, {repeats} repeats, batches of {about['batch_size']}, "
        f"temperature {temperature:g}, at most {about['max_new_tokens']} new tokens, "
        f"drafts of at most {about['k_max']}; {about['dtype']} on {count} x {platform} ({kind}).",
        "Time is compared batch by batch with the verifier alone, run next to it in the same process; bars show the "
        "slowest and fastest repeat. Compiling is not counted."
        + (" Infinite thresholds stand in the table only." if infinite else ""),
    ]


def _by_category(lines: Sequence[dict], score: Score | None) -> None:
    """Prints a table for each `category` of the prompts, where there are several."""
    categories = dict.fromkeys(line["input"].get("category") for line in lines)
    out, _ = terminal.consoles()
    for category in categories if len(categories) > 1 else ():
        of_it = (line for line in lines if line["input"].get("category") == category)
        out.print(f"\n{category or 'no category'}", style="bold", highlight=False)
        out.print(report.table(summary.summarise(of_it, score)))


def _write(rows: list[Row], folder: pathlib.Path, name: str, title: str, notes: list[str], err: Console) -> None:
    out, _ = terminal.consoles()
    out.print(report.table(rows))
    report.write_csv(folder / f"{name}.csv", rows)
    image = report.png(report.plot(rows))
    (folder / f"{name}.png").write_bytes(image)
    (folder / f"{name}.html").write_text(report.page(rows, image, title, notes), encoding="utf-8")
    err.print(f"written: {folder}/results.jsonl, {name}.csv, {name}.png, {name}.html", highlight=False, soft_wrap=True)
