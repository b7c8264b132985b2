"""What every training run does: goes on where it was left, writes figures, shows how far it is."""

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cascades import checks, hosts
from cascades.errors import UserError
from cascades.generation import records
from cascades.runs import fingerprint
from cascades.training.fit import Checkpoints, Schedule, fit
from cascades.training.spec import TrainingSpec
from cascades.training.step import TrainState
from cascades.typing import Params

METRICS = "metrics.jsonl"
RUN = "run.json"


def run(
    folder: pathlib.Path,
    training: TrainingSpec,
    about: dict[str, Any],
    state: TrainState,
    step: Callable[[TrainState, int], tuple[TrainState, dict[str, Any]]],
    evaluate: Callable[[TrainState], dict[str, float]],
    writer: Any,
    console: Console,
    config_text: Callable[[], str] | None = None,
) -> tuple[TrainState, dict[str, float]]:
    """Runs the steps that are left.

    Args:
      folder: see `folder_of`. about: see `described`. state, step, evaluate: see `fit`. writer: see `writer_of`.
      config_text: gives the whole configuration, which is saved beside the results.

    Returns:
      The last state, and the figures of the last evaluation, if there was any.
    """
    if hosts.leads() and not (folder / RUN).is_file():
        (folder / RUN).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    kept = _checkpoints(folder)
    schedule = Schedule(training.steps, training.save_every, training.evaluate_every)
    figures: dict[str, float] = {}
    with _metrics(folder, writer) as write, _bar(console, schedule.steps, kept.newest or 0) as show:
        for each in fit(state, kept, schedule, step, evaluate):
            write(each.step, each.figures, each.evaluation)
            show(each.step, each.figures, each.evaluation)
            figures = each.figures if each.evaluation else figures
    state = kept.restore(state)
    kept.close()
    if config_text and hosts.leads():
        (folder / "config.gin").write_text(config_text(), encoding="utf-8")
    return state, figures


def goes_on(folder: pathlib.Path) -> bool:
    """Whether a run in this folder has a state to go on from."""
    kept = _checkpoints(folder)
    newest = kept.newest
    kept.close()
    return newest is not None


def _checkpoints(folder: pathlib.Path) -> Checkpoints:
    return Checkpoints((folder / "checkpoints").absolute())


def count(params: Params) -> str:
    """Returns a number of parameters, for people."""
    number = sum(leaf.size for leaf in jax.tree.leaves(params))
    return f"{number / 1e6:.1f} M" if number >= 1e5 else str(number)


def read(path: Any, keys: tuple[str, str] = ("prompt", "text"), template: str | None = None) -> list[dict[str, Any]]:
    """Returns the lines of a JSONL file, plain or .gz, with what stands under `keys` as prompt and text.

    Args:
      template: what is put around the prompt, see `place_of`.

    Raises:
      UserError: there is no such file, or no line in it.
    """
    if not isinstance(path, str) or not pathlib.Path(path).expanduser().is_file():
        raise UserError(f"INPUT must be a JSONL file of prompts with answers, and there is no file {path!r}")
    try:
        lines = records.load(path)
    except (OSError, EOFError) as error:
        raise UserError(f"INPUT ({path}) cannot be read: {error}") from None
    if not lines:
        raise UserError(f"INPUT ({path}) holds no line of JSON: write some with launch/decode.py --output")
    if keys != ("prompt", "text"):
        lines = [{"prompt": line.get(keys[0]), "text": line.get(keys[1])} for line in lines]
    if template is None:
        return lines
    before, _, after = template.partition(place_of(keys))
    # A line without a prompt stays without one, which is told with its number.
    asked = [line for line in lines if isinstance(line.get("prompt"), str)]
    for line in asked:
        line["prompt"] = f"{before}{line['prompt']}{after}"
    return lines


def place_of(keys: Sequence[str]) -> str:
    """Where in a template the prompt of a line stands: the name of its field in braces, as in a task's template."""
    return f"{{{keys[0]}}}"


def described(training: TrainingSpec, **others: Any) -> dict[str, Any]:
    """Returns what decides a run's loss curve, by name, in a form that JSON can hold.

    Args:
      training: its knobs. others: what else the run was told.
    """
    free = ("tensorboard", "evaluate_every", "save_every")
    fields = {each.name: getattr(training, each.name) for each in dataclasses.fields(training) if each.name not in free}
    return json.loads(json.dumps({name: fingerprint.of_code(value) for name, value in (fields | others).items()}))


def folder_of(path: Any, about: dict[str, Any]) -> pathlib.Path:
    """Returns the folder of a run, which holds no other: `about`, see `described`, is written beside its results.

    Raises:
      UserError: it cannot be written, or holds a run with other settings.
    """
    folder = checks.folder("OUTPUT_DIR", path)
    if (folder / RUN).is_file():
        there = json.loads((folder / RUN).read_text(encoding="utf-8"))
        if changed := ", ".join(name.upper() for name, value in about.items() if there.get(name) != value):
            raise UserError(f"{folder} holds a run with another {changed}: give the same, or another OUTPUT_DIR")
    return folder


def writer_of(folder: pathlib.Path, wanted: bool) -> Any:
    """Returns what writes TensorBoard's events, or None."""
    if not wanted or not hosts.leads():
        return None
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            "TENSORBOARD needs tensorboardX: pip install -e '.[train]', or --gin.TENSORBOARD=False"
        ) from None
    return SummaryWriter(str(folder / "tensorboard"))


@contextlib.contextmanager
def _metrics(folder: pathlib.Path, writer: Any) -> Iterator[Callable[[int, dict[str, float], bool], None]]:
    """Yields what writes a line; one that stands there, from before a run was killed, is not written again."""
    path = str(folder / METRICS)
    known = {(line.get("step"), line.get("held_out")) for line in records.load(path)} if hosts.leads() else set()
    file = records.open_append(path) if hosts.leads() else None
    began = time.time()

    def write(step: int, figures: dict[str, float], evaluation: bool) -> None:
        if file is None or (step, evaluation) in known:
            return
        records.append(
            file, {"step": step, "held_out": evaluation, "seconds": round(time.time() - began, 2), **figures}
        )
        for name, value in figures.items() if writer else ():
            writer.add_scalar(f"{'held_out' if evaluation else 'train'}/{name}", value, step)

    try:
        yield write
    finally:
        if file and not file.closed:
            file.close()
        if writer:
            writer.close()


@contextlib.contextmanager
def _bar(console: Console, steps: int, done: int) -> Iterator[Callable[[int, dict[str, float], bool], None]]:
    """Yields what shows a step: a bar on a terminal, and a line an evaluation anywhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("compiling", total=steps, completed=done)

        def show(step: int, figures: dict[str, float], evaluation: bool) -> None:
            shares = (f"{name} {value:.1%}" for name, value in figures.items() if name not in ("loss", "gradient"))
            told = " ".join((f"loss {figures['loss']:.4f}", *shares))
            if evaluation:
                console.print(f"step {step}, held out: {told}", soft_wrap=True)
            else:
                progress.update(bar, completed=step, description=told)

        yield show
