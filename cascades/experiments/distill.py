"""Makes a drafter for a verifier: the run function of `launch/distill.py`."""

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

from cascades import checkpoints, hosts, tokenizers
from cascades.errors import UserError
from cascades.experiments import fingerprint, records, terminal
from cascades.experiments.decode import compilation_cache, default_dtype, layouts_of
from cascades.models import logical_axes
from cascades.training import data, distillation, losses
from cascades.training.data import Sizes
from cascades.training.drafters import Kind
from cascades.training.fit import Checkpoints, Schedule, fit
from cascades.training.step import optimizer
from cascades.typing import Params

NAMED_MODULES = ("cascades.training.drafters", "cascades.training.losses")
DRAFTER = "drafter"
METRICS = "metrics.jsonl"
RUN = "run.json"


def distill(
    *,
    verifier: str,
    drafter: Kind,
    input: str,
    output_dir: str,
    loss: losses.Loss = losses.forward_kl,
    steps: int = 1000,
    batch_size: int = 8,
    accumulate: int = 1,
    prompt_tokens: int = 256,
    answer_tokens: int = 128,
    learning_rate: float = 1e-3,
    warmup: int = 50,
    weight_decay: float = 0.01,
    on_policy: float = 0.0,
    temperature: float = 1.0,
    held_out: float = 0.05,
    evaluate_every: int = 100,
    save_every: int = 100,
    seed: int = 0,
    dtype: str | None = None,
    verifier_preset: str | None = None,
    raw_prompt: bool = False,
    mesh: tuple[int, int | None] | None = None,
    strategy: str = "fsdp",
    tensorboard: bool = True,
    config_text: Callable[[], str] | None = None,
) -> dict[str, float]:
    """Trains a drafter on answers, to say what the verifier says at each of their tokens.

    `output_dir` gets `metrics.jsonl` (a line a step, and one an evaluation), TensorBoard's events, checkpoints from
    which the same command goes on, and in the end `drafter/`, which `launch/decode.py` takes as DRAFTER.

    Args:
      verifier: see `decode`. drafter: a `training.drafters` kind. input: JSONL of prompts with answers, such as
        `launch/decode.py --output` writes. loss: of `training.losses`.
      steps, batch_size, accumulate: updates; rows of a batch; batches of an update, whose gradients are added up.
      prompt_tokens, answer_tokens: rows are so long; examples with longer prompts are left out, answers are cut.
      learning_rate, warmup, weight_decay: see `training.step.optimizer`.
      on_policy, temperature: the share of updates in which the drafter answers the prompts itself, and how it samples.
      held_out: the share of prompts that is never trained on. evaluate_every, save_every: in steps.
      dtype: of what is computed; parameters are trained in float32. mesh, strategy: see `decode`.
      tensorboard: write events, which needs tensorboardX.
      config_text: gives the whole configuration, which is saved beside the results.

    Returns:
      The figures of the last evaluation.

    Raises:
      UserError: any input that cannot be used, a loss that is no number, a full disk: in one sentence.
    """
    about = dict(locals())
    _check(about)
    sizes = Sizes(batch_size, prompt_tokens, answer_tokens)
    kind = default_dtype(dtype)
    layout = layouts_of(mesh, strategy, strategy, batch_size)[0]
    if not isinstance(verifier, str) or not verifier:
        raise UserError("VERIFIER must be a path or URI in quotes, as in --gin.VERIFIER=\"'hf://org/repo'\"")
    lines = _read(input)
    folder = _folder(output_dir)
    _check_run(folder, about)
    writer = _writer(folder) if tensorboard and hosts.leads() else None
    _, err = terminal.consoles(quiet=not hosts.leads())
    compilation_cache()

    places = None if layout is None else lambda like: layout.shardings(logical_axes(like), like)
    teacher = checkpoints.load(verifier, dtype=kind, preset=verifier_preset, shardings=places, progress=hosts.leads())
    tokenizer = tokenizers.load(teacher.path, verifier_preset)
    start = getattr(teacher.config, "start", None)
    examples = data.fitting(data.tokenized(lines, tokenizer, start, raw=raw_prompt), sizes)
    train, aside = data.held_out(examples, held_out, seed)
    train = data.fitting(train, sizes)
    key = jax.random.key(seed)
    trainee, state = distillation.prepare(
        teacher,
        tokenizer,
        drafter,
        train,
        key,
        loss=loss,
        optimizer=optimizer(learning_rate, steps, warmup, weight_decay),
        dtype=kind,
        layout=layout,
    )
    err.print(
        f"{len(train)} examples to train on and {len(aside)} held out, of {len(lines)} lines; "
        f"{_count(state.params)} parameters are trained, {_count(trainee.frozen)} shared with the verifier",
        soft_wrap=True,
    )
    _claim(folder, about)
    kept = Checkpoints((folder / "checkpoints").absolute())
    step = distillation.stepper(
        trainee, train, sizes, key, accumulate=accumulate, on_policy=on_policy, temperature=temperature
    )
    found: dict[str, float] = {}
    with _metrics(folder, writer) as write, _bar(err, steps, kept.newest or 0) as show:
        evaluate = distillation.evaluator(trainee, aside, sizes)
        for each in fit(state, kept, Schedule(steps, save_every, evaluate_every), step, evaluate):
            write(each.step, each.figures, each.evaluation)
            show(each.step, each.figures, each.evaluation)
            found = each.figures if each.evaluation else found
    state = kept.restore(state)
    kept.close()
    distillation.save(trainee, state, folder / DRAFTER)
    err.print(
        f"the drafter is {folder / DRAFTER}: --gin.DRAFTER=\"'{folder / DRAFTER}'\" lets launch/decode.py use it",
        soft_wrap=True,
    )
    if config_text and hosts.leads():
        (folder / "config.gin").write_text(config_text(), encoding="utf-8")
    return found


_WHOLE = ("steps", "batch_size", "accumulate", "prompt_tokens", "answer_tokens", "evaluate_every", "save_every")
_POSITIVE = ("learning_rate", "temperature")
_SHARES = ("on_policy", "held_out")


def _check(given: dict[str, Any]) -> None:
    """Raises a UserError for a figure that cannot be, before anything is loaded."""

    def number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

    for name in _WHOLE:
        if type(given[name]) is not int or given[name] < 1:
            raise UserError(f"{name.upper()} must be a whole number from 1, not {given[name]!r}")
    if type(given["warmup"]) is not int or given["warmup"] < 0:
        raise UserError(f"WARMUP must be a whole number from 0, not {given['warmup']!r}")
    for name in _POSITIVE:
        if not number(given[name]) or given[name] <= 0:
            raise UserError(f"{name.upper()} must be a number above 0, not {given[name]!r}")
    for name in _SHARES:
        if not number(given[name]) or not 0 <= given[name] <= 1:
            raise UserError(f"{name.upper()} must be a number from 0 to 1, not {given[name]!r}")
    if not number(given["weight_decay"]) or given["weight_decay"] < 0:
        raise UserError(f"WEIGHT_DECAY must be a number from 0, not {given['weight_decay']!r}")
    if not callable(given["drafter"]):
        raise UserError(f"DRAFTER must be a kind of drafter, as in @shallow(), not {given['drafter']!r}")
    if not callable(given["loss"]):
        raise UserError(f"LOSS must be a function of two distributions, as in @forward_kl, not {given['loss']!r}")
    if type(given["seed"]) is not int or not 0 <= given["seed"] < 2**31:
        raise UserError(f"SEED must be a whole number from 0 to 2**31 - 1, not {given['seed']!r}")


def _read(path: Any) -> list[dict[str, Any]]:
    if not isinstance(path, str) or not pathlib.Path(path).expanduser().is_file():
        raise UserError(f"INPUT must be a JSONL file of prompts with answers, and there is no file {path!r}")
    lines = records.load(path)
    if not lines:
        raise UserError(f"INPUT ({path}) holds no line of JSON: write some with launch/decode.py --output")
    return lines


def _folder(path: Any) -> pathlib.Path:
    if not isinstance(path, str) or not path:
        raise UserError("OUTPUT_DIR must be a folder, in quotes, as in --gin.OUTPUT_DIR=\"'results/drafter'\"")
    folder = pathlib.Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"OUTPUT_DIR must be a folder that can be written, but {path}: {error.strerror}") from None
    return folder


def _check_run(folder: pathlib.Path, about: dict[str, Any]) -> None:
    """A folder holds one run: what decides a loss curve is written beside it."""
    if not (folder / RUN).is_file():
        return
    there, mine = json.loads((folder / RUN).read_text(encoding="utf-8")), _settings(about)
    if changed := ", ".join(name.upper() for name, value in mine.items() if there.get(name) != value):
        raise UserError(f"{folder} holds a run with another {changed}: give the same, or another OUTPUT_DIR")


def _claim(folder: pathlib.Path, about: dict[str, Any]) -> None:
    if hosts.leads() and not (folder / RUN).is_file():
        (folder / RUN).write_text(json.dumps(_settings(about), indent=1) + "\n", encoding="utf-8")


def _settings(about: dict[str, Any]) -> dict[str, Any]:
    free = ("output_dir", "config_text", "tensorboard", "evaluate_every", "save_every")
    return json.loads(json.dumps({k: fingerprint.of_code(value) for k, value in about.items() if k not in free}))


def _writer(folder: pathlib.Path) -> Any:
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
            told = f"loss {figures['loss']:.4f} acceptance {figures['acceptance']:.1%}"
            if evaluation:
                console.print(f"step {step}, held out: {told} agreement {figures['agreement']:.1%}")
            else:
                progress.update(bar, completed=step, description=told)

        yield show


def _count(params: Params) -> str:
    number = sum(leaf.size for leaf in jax.tree.leaves(params))
    return f"{number / 1e6:.1f} M" if number >= 1e5 else str(number)
