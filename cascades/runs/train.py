"""Trains a model, from nothing or from a checkpoint: the run function of `launch/train.py`."""

import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import sentencepiece

from cascades import checkpoints, checks, hosts
from cascades.checkpoints.sources import tokenizer_directory
from cascades.errors import UserError
from cascades.generation import PromptSpec, compilation_cache
from cascades.models import T5Config, build
from cascades.models.api import WHOLE
from cascades.runs import terminal, training_run
from cascades.training import architectures, beginnings, data, learner, losses
from cascades.training.architectures import Architecture
from cascades.training.data import Batch
from cascades.training.spec import TrainingSpec
from cascades.training.step import Measure, along_answers, optimizer
from cascades.typing import Model, Params

NAMED_MODULES = ("cascades.training.spec", "cascades.training.architectures")
MODEL = "model"
TOKENIZER = "tokenizer.model"
MOST_PIECES = 8000


def train(
    *,
    model: Architecture | str,
    training: TrainingSpec,
    input: str,
    output_dir: str,
    preset: str | None = None,
    keys: Sequence[str] = ("prompt", "text"),
    template: str | None = None,
    prompts: PromptSpec = PromptSpec(raw_prompt=True),
    tokenizer: str | None = None,
    vocabulary: int | None = None,
    config_text: Callable[[], str] | None = None,
) -> dict[str, float]:
    """Trains a model to answer prompts as a file does.

    `output_dir` gets what `launch/distill.py` writes, and in the end `model/`, which `launch/decode.py` takes: in the
    dtype that was computed in, so that it says what the last evaluation measured.

    Args:
      model: a shape, of `training.architectures`, which begins with random weights; or the URI of a checkpoint to go on
        from, see `checkpoints.resolve`. training: how long, on what, where.
      input: JSONL, plain or .gz. output_dir: folder of the results.
      preset: the checkpoint's architecture by name, where its files do not say.
      keys: under which a line holds prompt and answer. template: the prompt, with the first of `keys` in braces where
        what stands there goes, as in "summarize: {document}"; None is that alone. prompts: how texts become prompts.
      tokenizer: a path or URI, as `checkpoints.resolve` takes, of a SentencePiece file or whatever `tokenizers.load`
        reads; None is the checkpoint's own, or for a shape one of at most `vocabulary` pieces, `MOST_PIECES` where
        None, which is trained on the input.
      config_text: gives the whole configuration, which is saved beside the results.

    Returns:
      The figures of the last evaluation.

    Raises:
      UserError: any input that cannot be used, a loss that is no number, a full disk: in one sentence.
    """
    _check(model, preset, keys, template, tokenizer, vocabulary)
    sizes, dtype, layout = training.sizes, training.computed, training.layout()
    lines = training_run.read(input, (keys[0], keys[1]), template)
    told = {"model": model, "preset": preset, "input": input, "keys": keys, "template": template}
    told |= {"tokenizer": tokenizer, "vocabulary": vocabulary}
    about = training_run.described(training, **told, **dataclasses.asdict(prompts))
    folder = training_run.folder_of(output_dir, about)
    writer = training_run.writer_of(folder, training.tensorboard)
    _, err = terminal.consoles(quiet=not hosts.leads())
    compilation_cache()

    key = jax.random.key(training.seed)
    named = tokenizer_directory(checkpoints.resolve(tokenizer)) if tokenizer else None
    if isinstance(model, str):
        begun = beginnings.of_checkpoint(model, preset, named, chat_template=prompts.chat_template, layout=layout)
    else:
        source = named or folder / TOKENIZER
        if named is None and not source.is_file():
            with err.status("training a SentencePiece model"):
                begins = not isinstance(model(MOST_PIECES), T5Config)
                source.write_bytes(pieces_of(lines, vocabulary or MOST_PIECES, begins=begins))
        begun = beginnings.of_shape(model, source, key, chat_template=prompts.chat_template)
    config, words = begun.config, begun.tokenizer
    if sizes.prompt + sizes.answer > config.context_length:
        raise UserError(
            f"PROMPT_TOKENS and ANSWER_TOKENS are {sizes.prompt + sizes.answer} tokens together, and the model has "
            f"room for {config.context_length}: lower one of them"
        )
    functions = build(config, dtype, layout, kernels=False, chunk=WHOLE)
    raw, control = prompts.raw_prompt, prompts.control_tokens
    examples = data.tokenized(lines, words, functions.start, raw=raw, control_tokens=control)
    training_set, aside = data.held_out(data.fitting(examples, sizes), training.held_out, training.seed)
    training_set = data.fitting(training_set, sizes)
    # A T5 scales no attention, so its queries begin small: steps that suit its other arrays would throw them about.
    relative = isinstance(config, T5Config)
    pupil, state = learner.begin(
        config,
        beginnings.blank(config, layout) if training_run.goes_on(folder) else begun.params(),
        next_token(functions, min(words.vocab_size, config.vocab_size)),
        optimizer(training.learning_rate, training.steps, training.warmup, training.weight_decay, relative=relative),
        dtype=dtype,
        layout=layout,
    )
    err.print(
        f"{len(training_set)} examples to train on and {len(aside)} held out, of {len(lines)} lines; "
        f"{training_run.count(state.params)} parameters, {words.vocab_size} tokens",
        soft_wrap=True,
    )
    if raw and words.has_chat_template:
        err.print("note: RAW_PROMPT=True leaves the chat template out: decode with it too", style="yellow")
    step = learner.stepper(pupil, training_set, sizes, key, accumulate=training.accumulate)
    evaluate = learner.evaluator(pupil, aside, sizes)
    state, figures = training_run.run(folder, training, about, state, step, evaluate, writer, err, config_text)
    target = folder / MODEL
    if not (target / "cascades.json").exists():
        checkpoints.save(target, config, pupil.params(state, dtype), tokenizer_source=begun.source)
    err.print(f"the model is {target}, for VERIFIER or DRAFTER of launch/decode.py", soft_wrap=True)
    return figures


def _check(model: Any, preset: Any, keys: Any, template: Any, tokenizer: Any, vocabulary: Any) -> None:
    """Raises a UserError for a knob that cannot be, or that nothing would read."""
    shape = callable(model) and getattr(model, "__name__", "") not in architectures.__all__
    if not shape and not isinstance(model, str):
        raise UserError(
            "MODEL must be a shape with its brackets, as in @t5() or @decoder(), or a checkpoint's path or URI in "
            f"quotes, not {model!r}"
        )
    if shape and preset is not None:
        raise UserError("PRESET is the architecture of a checkpoint, and MODEL is a shape: leave PRESET None")
    if len(keys) != 2 or not all(isinstance(key, str) for key in keys):
        raise UserError(f"KEYS must be two names, of prompt and answer, as in ('prompt', 'text'), not {keys!r}")
    if template is not None and (not isinstance(template, str) or training_run.place_of(keys) not in template):
        raise UserError(
            f"TEMPLATE must be a text with {training_run.place_of(keys)} where the prompt of a line stands, not "
            f"{template!r}"
        )
    if vocabulary is not None:
        checks.whole("VOCABULARY", vocabulary, 300)
        if not shape or tokenizer is not None:
            raise UserError(
                "VOCABULARY is of a tokenizer that is trained, and this run is given one, by "
                f"{'MODEL' if tokenizer is None else 'TOKENIZER'}: leave VOCABULARY None"
            )


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
