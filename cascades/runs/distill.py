"""Makes a drafter for a verifier: the run function of `launch/distill.py`."""

import dataclasses
import json
import pathlib
from collections.abc import Callable

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cascades import checkpoints, checks, hosts, tokenizers
from cascades.errors import UserError
from cascades.generation import ModelSpec, PairSpec, PromptSpec, compilation_cache
from cascades.models import logical_axes
from cascades.runs import terminal, training_run
from cascades.training import calibration, data, distillation, drafters, learner, losses, policy
from cascades.training.data import BatchShape
from cascades.training.drafters import Kind
from cascades.training.recall import recalled as recall_all
from cascades.training.spec import TrainingSpec
from cascades.training.step import optimizer

NAMED_MODULES = (
    "cascades.training.spec",
    "cascades.training.drafters",
    "cascades.training.architectures",
    "cascades.training.losses",
)
RENAMED = {"DRAFTER": "KIND, the kind of drafter to make"}
DRAFTER = "drafter"


def distill(
    *,
    verifier: ModelSpec,
    kind: Kind,
    training: TrainingSpec,
    input: str,
    output_dir: str,
    prompts: PromptSpec = PromptSpec(),
    loss: losses.Loss = losses.forward_kl,
    depth: int = 3,
    on_policy: float = 0.0,
    temperature: float = 1.0,
    recall: bool = True,
    config_text: Callable[[], str] | None = None,
) -> dict[str, float]:
    """Trains a drafter on answers, to say what the verifier says at each of their tokens.

    `output_dir` gets `metrics.jsonl` (a line a step, and one an evaluation), TensorBoard's events, checkpoints from
    which the same command goes on, and in the end `drafter/`, which `launch/decode.py` takes as DRAFTER.

    Args:
      verifier: the teacher. kind: of drafter, of `training.drafters`. training: how long, on what, where.
      input: JSONL of prompts with answers, such as `launch/decode.py --output` writes. prompts: how its texts become
        prompts. output_dir: folder of the results.
      loss: of `training.losses`. depth: drafts of a round that a drafter which reads hidden states learns; behind the
        first it reads its own.
      on_policy, temperature: the share of updates in which the drafter answers the prompts itself, and how it samples.
      recall: let the verifier read each example once, and keep its hidden states (bfloat16) in `output_dir/recall`;
        else, and where there are several processes, it reads every batch.
      config_text: gives the whole configuration, which is saved beside the results.

    Returns:
      The figures of the last evaluation, and those of the calibration.

    Raises:
      UserError: any input that cannot be used, a loss that is no number, a full disk: in one sentence.
    """
    if not callable(kind) or getattr(kind, "__name__", "") in drafters.__all__:
        raise UserError(f"KIND must be a kind of drafter with its brackets, as in @shallow(), not {kind!r}")
    if not callable(loss):
        raise UserError(f"LOSS must be a function of two distributions, as in @forward_kl, not {loss!r}")
    checks.whole("DEPTH", depth, 1)
    checks.number("ON_POLICY", on_policy, 0.0, 1.0)
    checks.positive("TEMPERATURE", temperature)
    checks.switch("RECALL", recall)
    uri, preset = PairSpec(verifier=verifier).verifier.uri, verifier.preset
    if verifier != ModelSpec(uri=uri, preset=preset):
        raise UserError("a teacher is taken as it is: leave weights, cache and strategy of verifier/ModelSpec alone")
    assert isinstance(uri, str)
    sizes, dtype, layout = training.sizes, training.computed, training.layout()
    lines = training_run.read(input)
    about = training_run.described(
        training,
        verifier=uri,
        verifier_preset=preset,
        kind=kind,
        input=input,
        loss=loss,
        depth=depth,
        on_policy=on_policy,
        temperature=temperature,
        recall=recall,
        **dataclasses.asdict(prompts),
    )
    folder = training_run.folder_of(output_dir, about)
    writer = training_run.writer_of(folder, training.tensorboard)
    _, err = terminal.consoles(quiet=not hosts.leads())
    compilation_cache()

    places = None if layout is None else lambda like: layout.shardings(logical_axes(like), like)
    teacher = checkpoints.load(uri, dtype=dtype, preset=preset, shardings=places, progress=hosts.leads())
    tokenizer = tokenizers.load(teacher.path, preset, prompts.chat_template)
    start = getattr(teacher.config, "start", None)
    raw, control = prompts.raw_prompt, prompts.control_tokens
    examples = data.fitting(data.tokenized(lines, tokenizer, start, raw=raw, control_tokens=control), sizes)
    train, aside = data.held_out(examples, training.held_out, training.seed)
    train, key = data.fitting(train, sizes), jax.random.key(training.seed)
    change = optimizer(training.learning_rate, training.steps, training.warmup, training.weight_decay)
    trainee, state = distillation.prepare(
        teacher, tokenizer, kind, train, key, loss=loss, depth=depth, optimizer=change, dtype=dtype, layout=layout
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
        if trainee.model.feature_width is not None:
            raise UserError("a drafter that reads hidden states cannot answer prompts itself: set ON_POLICY=0")
        slots = sizes.prompt + sizes.answer
        answer = policy.answers_of(trainee.model, trainee.vocabulary, tuple(tokenizer.eos_ids), slots, temperature)
    step = learner.stepper(
        trainee.learner, train, sizes, key, accumulate=training.accumulate, answer=answer, on_policy=on_policy
    )
    evaluate = learner.evaluator(trainee.learner, aside, sizes)
    state, figures = training_run.run(folder, training, about, state, step, evaluate, writer, err, config_text)
    certain = calibration.calibrate(trainee, state, aside, sizes, depth)
    distillation.save(trainee, state, certain.temperature, teacher.path, folder / DRAFTER)
    if calibration.foldable(trainee):
        err.print(
            f"calibrated on held-out text: logits are divided by {certain.temperature:.2f}; expected calibration error "
            f"{certain.before:.3f} before, {certain.after:.3f} after",
            highlight=False,
            soft_wrap=True,
        )
        figures |= {"temperature": certain.temperature, "error_before": certain.before, "error_after": certain.after}
        if hosts.leads():
            (folder / "calibration.json").write_text(json.dumps(certain._asdict()) + "\n", encoding="utf-8")
    err.print(
        f"the drafter is {folder / DRAFTER}: --gin.DRAFTER=\"'{folder / DRAFTER}'\" lets launch/decode.py use it",
        soft_wrap=True,
    )
    return figures


def _recalled(
    trainee: distillation.Trainee,
    examples: list[data.Example],
    sizes: BatchShape,
    folder: pathlib.Path,
    err: Console,
) -> list[data.Example]:
    """The examples with what the verifier makes of them, behind a bar."""
    learner = trainee.learner
    assert learner.teach is not None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal) as progress:
        bar = progress.add_task("the verifier reads", total=len(examples))
        return recall_all(
            examples,
            sizes.batch,
            trainee.width,
            learner.teach,
            learner.teacher,
            folder,
            prompts=trainee.model.feature_width is not None,
            progress=lambda more: progress.advance(bar, more),
        )
