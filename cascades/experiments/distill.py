"""Makes a drafter for a verifier: the run function of `launch/distill.py`."""

import json
import pathlib
from collections.abc import Callable

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cascades import checkpoints, hosts, tokenizers
from cascades.errors import UserError
from cascades.experiments import terminal, training_run
from cascades.experiments.decode import check_prompts, compilation_cache, default_dtype, layouts_of
from cascades.models import logical_axes
from cascades.training import calibration, data, distillation, drafters, learner, losses, policy
from cascades.training.data import Sizes
from cascades.training.drafters import Kind
from cascades.training.recall import recalled as recall_all
from cascades.training.step import optimizer

NAMED_MODULES = ("cascades.training.drafters", "cascades.training.architectures", "cascades.training.losses")
DRAFTER = "drafter"


def distill(
    *,
    verifier: str,
    drafter: Kind,
    input: str,
    output_dir: str,
    loss: losses.Loss = losses.forward_kl,
    depth: int = 3,
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
    control_tokens: bool | None = None,
    chat_template: str | None = None,
    mesh: tuple[int, int | None] | None = None,
    strategy: str = "fsdp",
    tensorboard: bool = True,
    recall: bool = True,
    config_text: Callable[[], str] | None = None,
) -> dict[str, float]:
    """Trains a drafter on answers, to say what the verifier says at each of their tokens.

    `output_dir` gets `metrics.jsonl` (a line a step, and one an evaluation), TensorBoard's events, checkpoints from
    which the same command goes on, and in the end `drafter/`, which `launch/decode.py` takes as DRAFTER.

    Args:
      verifier: see `decode`. drafter: a `training.drafters` kind. input: JSONL of prompts with answers, such as
        `launch/decode.py --output` writes. loss: of `training.losses`. depth: drafts of a round that a drafter which
        reads hidden states learns; behind the first it reads its own.
      steps, batch_size, accumulate: updates; rows of a batch; batches of an update, whose gradients are added up.
      prompt_tokens, answer_tokens: rows are so long; examples with longer prompts are left out, answers are cut.
      learning_rate, warmup, weight_decay: see `training.step.optimizer`.
      on_policy, temperature: the share of updates in which the drafter answers the prompts itself, and how it samples.
      held_out: the share of prompts that is never trained on. evaluate_every, save_every: in steps.
      dtype: of what is computed; parameters are trained in float32. mesh, strategy: see `decode`.
      tensorboard: write events, which needs tensorboardX.
      recall: let the verifier read each example once, and keep its hidden states (bfloat16) in `output_dir/recall`;
        else, and where there are several processes, it reads every batch.
      config_text: gives the whole configuration, which is saved beside the results.

    Returns:
      The figures of the last evaluation, and those of the calibration.

    Raises:
      UserError: any input that cannot be used, a loss that is no number, a full disk: in one sentence.
    """
    about = dict(locals())
    training_run.check(about)
    if not callable(drafter) or getattr(drafter, "__name__", "") in drafters.__all__:
        raise UserError(f"DRAFTER must be a kind of drafter with its brackets, as in @shallow(), not {drafter!r}")
    if not callable(loss):
        raise UserError(f"LOSS must be a function of two distributions, as in @forward_kl, not {loss!r}")
    if not isinstance(verifier, str) or not verifier:
        raise UserError("VERIFIER must be a path or URI in quotes, as in --gin.VERIFIER=\"'hf://org/repo'\"")
    sizes, kind = Sizes(batch_size, prompt_tokens, answer_tokens), default_dtype(dtype)
    if type(recall) is not bool:
        raise UserError(f"RECALL must be True or False, not {recall!r}")
    check_prompts(raw_prompt, control_tokens, chat_template)
    layout = layouts_of(mesh, strategy, strategy, batch_size)[0]
    lines = training_run.read(input)
    folder = training_run.folder_of(output_dir, about)
    writer = training_run.writer_of(folder, tensorboard)
    _, err = terminal.consoles(quiet=not hosts.leads())
    compilation_cache()

    places = None if layout is None else lambda like: layout.shardings(logical_axes(like), like)
    teacher = checkpoints.load(verifier, dtype=kind, preset=verifier_preset, shardings=places, progress=hosts.leads())
    tokenizer = tokenizers.load(teacher.path, verifier_preset, chat_template)
    start = getattr(teacher.config, "start", None)
    prompts = data.tokenized(lines, tokenizer, start, raw=raw_prompt, control_tokens=control_tokens)
    examples = data.fitting(prompts, sizes)
    train, aside = data.held_out(examples, held_out, seed)
    train, key = data.fitting(train, sizes), jax.random.key(seed)
    change = optimizer(learning_rate, steps, warmup, weight_decay)
    trainee, state = distillation.prepare(
        teacher, tokenizer, drafter, train, key, loss=loss, depth=depth, optimizer=change, dtype=kind, layout=layout
    )
    trained, still = training_run.count(state.params), training_run.count(trainee.learner.frozen)
    err.print(
        f"{len(train)} examples to train on and {len(aside)} held out, of {len(lines)} lines; "
        f"{trained} parameters are trained, {still} are not",
        soft_wrap=True,
    )
    if recall and not hosts.several():
        train, aside = (_recalled(trainee, part, sizes, folder / "recall", err) for part in (train, aside))
    answer = None
    if on_policy:
        if trainee.model.reads is not None:
            raise UserError("a drafter that reads hidden states cannot answer prompts itself: set ON_POLICY=0")
        slots = prompt_tokens + answer_tokens
        answer = policy.answers_of(trainee.model, trainee.vocabulary, tuple(tokenizer.eos_ids), slots, temperature)
    step = learner.stepper(
        trainee.learner, train, sizes, key, accumulate=accumulate, answer=answer, on_policy=on_policy
    )
    evaluate = learner.evaluator(trainee.learner, aside, sizes)
    state, found = training_run.run(folder, about, state, step, evaluate, writer, err)
    certain = calibration.calibrate(trainee, state, aside, sizes, depth)
    distillation.save(trainee, state, certain.temperature, teacher.path, folder / DRAFTER)
    if calibration.foldable(trainee):
        err.print(
            f"calibrated on held-out text: logits are divided by {certain.temperature:.2f}; expected calibration error "
            f"{certain.before:.3f} before, {certain.after:.3f} after",
            highlight=False,
            soft_wrap=True,
        )
        found |= {"temperature": certain.temperature, "error_before": certain.before, "error_after": certain.after}
        if hosts.leads():
            (folder / "calibration.json").write_text(json.dumps(certain._asdict()) + "\n", encoding="utf-8")
    err.print(
        f"the drafter is {folder / DRAFTER}: --gin.DRAFTER=\"'{folder / DRAFTER}'\" lets launch/decode.py use it",
        soft_wrap=True,
    )
    return found


def _recalled(
    trainee: distillation.Trainee,
    examples: list[data.Example],
    sizes: Sizes,
    folder: pathlib.Path,
    err: Console,
) -> list[data.Example]:
    """The examples with what the verifier makes of them, behind a bar."""
    found = trainee.learner
    assert found.teach is not None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal) as progress:
        bar = progress.add_task("the verifier reads", total=len(examples))
        return recall_all(
            examples,
            sizes.batch,
            trainee.width,
            found.teach,
            found.teacher,
            folder,
            prompts=trainee.model.reads is not None,
            progress=lambda more: progress.advance(bar, more),
        )
