"""One model: its checkpoint, its tokenizer and its chat templates."""

import dataclasses
from typing import Any, NamedTuple

from cascades import checkpoints, tokenizers
from cascades.checkpoints.contents import Attempts, Contents, Problem
from cascades.checkpoints.families import FAMILY
from cascades.models import Config, T5Config
from cascades.tokenizers import Tokenizer, chat

_SHOWN = 12  # control tokens that are named
_PROBE = ({"role": "user", "content": "Hello"},)


class Inspected(NamedTuple):
    """A model of which no weights were read.

    name: its URI. contents: of its checkpoint. tokenizer: None where it would be refused.
    problems: everything that would be refused, one a part. notes: what is good to know and refuses nothing.
    """

    name: str
    contents: Contents
    tokenizer: Tokenizer | None
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    @property
    def config(self) -> Config | None:
        return self.contents.config


def inspect(uri: str, preset: str | None = None) -> Inspected:
    """Opens a model as loading does, up to its weights; a bad input is told in `problems`, never raised.

    Args:
      uri: see `checkpoints.resolve`.
      preset: the shape where the files leave it open.
    """
    contents = checkpoints.contents(uri, preset)
    attempt = Attempts(contents.problems)
    place, tokenizer = contents.tokenizer, None
    if place is not None:
        tokenizer = attempt("tokenizer", lambda: tokenizers.load(place, preset))
    if tokenizer is not None:
        known = tokenizer
        for source in known.chat_templates.values():
            if source == known.chat_template:
                attempt("template", lambda source=source: chat.render(source, _PROBE, known.special_tokens))
            else:  # what it is made for (tools, documents) is not known here
                attempt("template", lambda source=source: chat.check(source))
    return Inspected(uri, contents, tokenizer, tuple(attempt.problems), tuple(_notes(contents, tokenizer)))


def family(config: Config) -> str:
    """The family whose constants an architecture has."""
    if isinstance(config, T5Config):
        return "t5 v1.1" if config.gated else "t5"
    # From the last, which has most of them: a Gemma 3 has what a Gemma 2 has.
    fits = (
        name for name, fields in reversed(FAMILY.items()) if all(getattr(config, k) == v for k, v in fields.items())
    )
    return next(fits) + (", reads hidden states of a verifier (EAGLE)" if config.reads_features else "")


def to_json(model: Inspected) -> dict[str, Any]:
    """Everything that is known, for `json.dumps`."""
    contents = model.contents
    return {
        "uri": model.name,
        "path": None if contents.path is None else str(contents.path),
        "format": contents.form,
        "bytes": contents.size,
        "weights": {"tensors": len(contents.tensors), "types": contents.kinds, "quantised": list(contents.quantised)},
        "architecture": None if model.config is None else _architecture(model.config),
        "parameters": contents.parameters,
        "shared": list(contents.shared),
        "tokenizer": None if model.tokenizer is None else _tokenizer(model.tokenizer),
        "chat_templates": None if model.tokenizer is None else sorted(model.tokenizer.chat_templates),
        "notes": list(model.notes),
        "problems": [problem._asdict() for problem in model.problems],
        "loads": not model.problems,
    }


def _architecture(config: Config) -> dict[str, Any]:
    """The fields of a config and the family's name."""
    said = dataclasses.asdict(config)
    if not isinstance(config, T5Config):
        said["local_layers"] = [i for i, local in enumerate(config.local_layers) if local]
    return {"family": family(config), **said}


def _tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    control = sorted(tokenizer.control)
    return {
        "kind": _kind(tokenizer),
        "vocabulary": tokenizer.vocab_size,
        "bos": named(tokenizer, tokenizer.bos_id),
        "before": [named(tokenizer, token) for token in tokenizer.before or ()],
        "behind": [named(tokenizer, token) for token in tokenizer.after or ()],
        "ends_of_turn": [named(tokenizer, token) for token in tokenizer.eos_ids],
        "control": {"count": len(control), "first": [tokenizer.pieces[token] for token in control[:_SHOWN]]},
    }


def named(tokenizer: Tokenizer, token: int | None) -> dict[str, Any] | None:
    """An id with its piece."""
    return None if token is None else {"id": token, "piece": tokenizer.pieces[token]}


def _kind(tokenizer: Tokenizer) -> str:
    """How the pieces spell a space tells the kind."""
    spaces = {piece[0] for piece, text in zip(tokenizer.pieces, tokenizer.contents, strict=True) if text[:1] == b" "}
    return "byte-level BPE" if "Ġ" in spaces else "SentencePiece" if "▁" in spaces else "of another spelling"


def _notes(contents: Contents, tokenizer: Tokenizer | None) -> list[str]:
    notes = []
    if contents.shared:
        notes.append(f"its {' and '.join(contents.shared)} is the verifier's: it loads as the DRAFTER of a pair alone")
    if tokenizer is None:
        return notes
    notes += tokenizer.remarks
    if tokenizer.chat_templates and tokenizer.chat_template is None:
        notes.append("none of its chat templates is the default: choose one by its name with CHAT_TEMPLATE")
    if not tokenizer.eos_ids:
        notes.append("no token is known to end an answer")
    if contents.config is not None and tokenizer.vocab_size > contents.config.vocab_size:
        over = tokenizer.vocab_size - contents.config.vocab_size
        notes.append(f"its tokenizer's last {over} tokens stand behind the model's {contents.config.vocab_size} logits")
    return notes
