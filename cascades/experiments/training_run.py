"""What every training run does: checks its knobs, goes on where it was left, writes figures, shows how far it is."""

import contextlib
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cascades import hosts
from cascades.errors import UserError
from cascades.experiments import fingerprint, records
from cascades.training.fit import Checkpoints, Schedule, fit
from cascades.training.step import State
from cascades.typing import Params

METRICS = "metrics.jsonl"
RUN = "run.json"


def run(
    folder: pathlib.Path,
    about: dict[str, Any],
    state: State,
    step: Callable[[State, int], tuple[State, dict[str, Any]]],
    evaluate: Callable[[State], dict[str, float]],
    writer: Any,
    console: Console,
) -> tuple[State, dict[str, float]]:
    """Runs the steps that are left.

    Args:
      about: the run's arguments, by name. state, step, evaluate: see `fit`. writer: see `writer_of`.

    Returns:
      The last state, and the figures of the last evaluation, if there was any.
    """
    if hosts.leads() and not (folder / RUN).is_file():
        (folder / RUN).write_text(json.dumps(_settings(about), indent=1) + "\n", encoding="utf-8")
    kept = Checkpoints((folder / "checkpoints").absolute())
    schedule = Schedule(about["steps"], about["save_every"], about["evaluate_every"])
    found: dict[str, float] = {}
    with _metrics(folder, writer) as write, _bar(console, schedule.steps, kept.newest or 0) as show:
        for each in fit(state, kept, schedule, step, evaluate):
            write(each.step, each.figures, each.evaluation)
            show(each.step, each.figures, each.evaluation)
            found = each.figures if each.evaluation else found
    state = kept.restore(state)
    kept.close()
    if about["config_text"] and hosts.leads():
        (folder / "config.gin").write_text(about["config_text"](), encoding="utf-8")
    return state, found


def count(params: Params) -> str:
    """Returns a number of parameters, for people."""
    number = sum(leaf.size for leaf in jax.tree.leaves(params))
    return f"{number / 1e6:.1f} M" if number >= 1e5 else str(number)


_WHOLE = ("steps", "batch_size", "accumulate", "prompt_tokens", "answer_tokens", "evaluate_every", "save_every")
_COUNTS = ("depth",)
_POSITIVE = ("learning_rate", "temperature")
_SHARES = ("on_policy", "held_out")


def check(given: dict[str, Any]) -> None:
    """Raises a UserError for a figure that cannot be, before anything is loaded; `given` holds a run's arguments."""

    def number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

    for name in (*_WHOLE, *(name for name in _COUNTS if name in given)):
        if type(given[name]) is not int or given[name] < 1:
            raise UserError(f"{name.upper()} must be a whole number from 1, not {given[name]!r}")
    if type(given["warmup"]) is not int or given["warmup"] < 0:
        raise UserError(f"WARMUP must be a whole number from 0, not {given['warmup']!r}")
    for name in (name for name in _POSITIVE if name in given):
        if not number(given[name]) or given[name] <= 0:
            raise UserError(f"{name.upper()} must be a number above 0, not {given[name]!r}")
    for name in (name for name in _SHARES if name in given):
        if not number(given[name]) or not 0 <= given[name] <= 1:
            raise UserError(f"{name.upper()} must be a number from 0 to 1, not {given[name]!r}")
    if not number(given["weight_decay"]) or given["weight_decay"] < 0:
        raise UserError(f"WEIGHT_DECAY must be a number from 0, not {given['weight_decay']!r}")
    if type(given["seed"]) is not int or not 0 <= given["seed"] < 2**31:
        raise UserError(f"SEED must be a whole number from 0 to 2**31 - 1, not {given['seed']!r}")


def read(path: Any, keys: tuple[str, str] = ("prompt", "text")) -> list[dict[str, Any]]:
    """Returns the lines of a JSONL file, plain or .gz, with what stands under `keys` as prompt and text.

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
    if keys == ("prompt", "text"):
        return lines
    return [{"prompt": line.get(keys[0]), "text": line.get(keys[1])} for line in lines]


def folder_of(path: Any, about: dict[str, Any]) -> pathlib.Path:
    """Returns the folder of a run, which holds no other: what decides its loss curve is written beside it.

    Raises:
      UserError: it cannot be written, or holds a run with other settings.
    """
    if not isinstance(path, str) or not path:
        raise UserError("OUTPUT_DIR must be a folder, in quotes, as in --gin.OUTPUT_DIR=\"'results/drafter'\"")
    folder = pathlib.Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"OUTPUT_DIR must be a folder that can be written, but {path}: {error.strerror}") from None
    if (folder / RUN).is_file():
        there, mine = json.loads((folder / RUN).read_text(encoding="utf-8")), _settings(about)
        if changed := ", ".join(name.upper() for name, value in mine.items() if there.get(name) != value):
            raise UserError(f"{folder} holds a run with another {changed}: give the same, or another OUTPUT_DIR")
    return folder


def _settings(about: dict[str, Any]) -> dict[str, Any]:
    free = ("output_dir", "config_text", "tensorboard", "evaluate_every", "save_every")
    return json.loads(json.dumps({k: fingerprint.of_code(value) for k, value in about.items() if k not in free}))


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
