"""Trains a model from nothing: the run function of `launch/train.py`."""

import io
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import sentencepiece

from cascades import checkpoints, checks, hosts, tokenizers
from cascades.errors import UserError
from cascades.generation import compilation_cache
from cascades.models import T5Config, build
from cascades.models.api import WHOLE
from cascades.runs import terminal, training_run
from cascades.training import architectures, data, learner, losses
from cascades.training.architectures import Architecture
from cascades.training.data import Batch
from cascades.training.spec import TrainingSpec
from cascades.training.step import Measure, along_answers, optimizer
from cascades.typing import Model, Params

NAMED_MODULES = ("cascades.training.spec", "cascades.training.architectures")
MODEL = "model"
TOKENIZER = "tokenizer.model"


def train(
    *,
    model: Architecture,
    training: TrainingSpec,
    input: str,
    output_dir: str,
    keys: Sequence[str] = ("prompt", "text"),
    tokenizer: str | None = None,
    vocabulary: int = 8000,
    config_text: Callable[[], str] | None = None,
) -> dict[str, float]:
    """Trains a model to answer prompts as a file does.

    `output_dir` gets what `launch/distill.py` writes, and in the end `model/`, which `launch/decode.py` takes.

    Args:
      model: a shape, of `training.architectures`. training: how long, on what, where.
      input: JSONL, plain or .gz. output_dir: folder of the results.
      keys: under which a line holds prompt and answer. tokenizer: a SentencePiece file; None trains one of at most
        `vocabulary` pieces on the input.
      config_text: gives the whole configuration, which is saved beside the results.

    Returns:
      The figures of the last evaluation.

    Raises:
      UserError: any input that cannot be used, a loss that is no number, a full disk: in one sentence.
    """
    if not callable(model) or getattr(model, "__name__", "") in architectures.__all__:
        raise UserError(f"MODEL must be a shape with its brackets, as in @t5() or @decoder(), not {model!r}")
    if len(keys) != 2 or not all(isinstance(key, str) for key in keys):
        raise UserError(f"KEYS must be two names, of prompt and answer, as in ('prompt', 'text'), not {keys!r}")
    checks.whole("VOCABULARY", vocabulary, 300)
    sizes, dtype, layout = training.sizes, training.computed, training.layout()
    lines = training_run.read(input, (keys[0], keys[1]))
    about = training_run.described(
        training, model=model, input=input, keys=keys, tokenizer=tokenizer, vocabulary=vocabulary
    )
    folder = training_run.folder_of(output_dir, about)
    writer = training_run.writer_of(folder, training.tensorboard)
    _, err = terminal.consoles(quiet=not hosts.leads())
    compilation_cache()

    source = pathlib.Path(tokenizer).expanduser() if tokenizer else folder / TOKENIZER
    encodes = isinstance(model(vocabulary), T5Config)
    # A T5 scales no attention, so its queries begin small: steps that suit its other arrays would throw them about.
    change = optimizer(training.learning_rate, training.steps, training.warmup, training.weight_decay, relative=encodes)
    if tokenizer is None and not source.is_file():
        with err.status("training a SentencePiece model"):
            source.write_bytes(pieces_of(lines, vocabulary, begins=not encodes))
    words = tokenizers.load(source)
    config = model(-(-words.vocab_size // 128) * 128)  # a head of whole tiles, which more chips can share
    functions = build(config, dtype, layout, kernels=False, chunk=WHOLE)
    examples = data.fitting(data.tokenized(lines, words, functions.start, raw=True), sizes)
    training_set, aside = data.held_out(examples, training.held_out, training.seed)
    training_set, key = data.fitting(training_set, sizes), jax.random.key(training.seed)
    pupil, state = learner.begin(
        config,
        build(config).init(key),
        next_token(functions, words.vocab_size),
        change,
        dtype=dtype,
        layout=layout,
    )
    err.print(
        f"{len(training_set)} examples to train on and {len(aside)} held out, of {len(lines)} lines; "
        f"{training_run.count(state.params)} parameters, {words.vocab_size} tokens",
        soft_wrap=True,
    )
    step = learner.stepper(pupil, training_set, sizes, key, accumulate=training.accumulate)
    evaluate = learner.evaluator(pupil, aside, sizes)
    state, figures = training_run.run(folder, training, about, state, step, evaluate, writer, err, config_text)
    target = folder / MODEL
    if not (target / "cascades.json").exists():
        checkpoints.save(target, config, pupil.params(state, jnp.bfloat16), tokenizer_source=source)
    err.print(f"the model is {target}, for VERIFIER or DRAFTER of launch/decode.py", soft_wrap=True)
    return figures


def next_token(model: Model, vocabulary: int) -> Measure:
    """Returns the cross-entropy of every token of an answer, and how often it is the model's favourite."""

    def measure(params: Params, teacher: Params, batch: Batch):
        del teacher
        logits = along_answers(model, params, batch)[0].logits[:, :, :vocabulary]
        favourite = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return {
            "loss": losses.cross_entropy(logits, batch.answer),
            "accuracy": (favourite == batch.answer).astype(jnp.float32),
        }

    return measure


def pieces_of(lines: Sequence[dict[str, Any]], vocabulary: int, *, begins: bool) -> bytes:
    """Returns a SentencePiece model trained on all texts: T5's special pieces, with one that begins a text if `begins`.

    Raises:
      UserError: the texts cannot be cut into pieces.
    """
    texts = (text for line in lines for text in (line.get("prompt"), line.get("text")) if isinstance(text, str))
    model = io.BytesIO()
    special: dict[str, Any] = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": 3 if begins else -1}
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=texts,
            model_writer=model,
            vocab_size=vocabulary,
            hard_vocab_limit=False,
            character_coverage=1.0,
            minloglevel=2,
            **special,
        )
    except RuntimeError as error:
        raise UserError(
            f"no SentencePiece model of {vocabulary} pieces can be made of the input ({error}): lower VOCABULARY"
        ) from None
    return model.getvalue()
