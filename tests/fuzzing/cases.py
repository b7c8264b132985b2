"""One mutated model a seed: which base, which of its files, and what is done to it."""

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fuzzing.bases import CONFIGS
from fuzzing.mutations import dump, lie, mutate_bytes, mutate_json

INDEX = "model.safetensors.index.json"
OUTSIDE = "outside"  # a folder beside the models, whose files no model may open
# How many seeds of a hundred mutate what.
SHARES = {"config": 26, "ours": 4, "gguf": 20, "safetensors": 10, "index": 10, "tokenizer": 22, "jsonl": 8}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "tokenizer.model",
    "spiece.model",
)
_PLACES = (
    f"../{OUTSIDE}/model.safetensors",
    f"x/../../{OUTSIDE}/model.safetensors",
    f"./../{OUTSIDE}/model.safetensors",
    "{bases}/" + f"{OUTSIDE}/model.safetensors",
    "/etc/passwd",
    "/dev/zero",
    "/proc/self/mem",
    "~/model.safetensors",
    "",
    ".",
    "..",
    "config.json",
    "a\0b",
    "x" * 5000,
    "C:\\model.safetensors",
    "file:///etc/passwd",
)
_TEMPLATES = (
    "",
    " ",
    "{{ messages }}",
    "{% for m in messages %}",
    "{{ raise_exception('no') }}",
    "{{ messages[99].content }}",
    "{{ ''.__class__.__mro__ }}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as x %}",
    "{{ 1 / 0 }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ messages | tojson }}",
    "{{ undefined.attribute }}",
    "{{ bos_token }}{{ messages[0]['content'] }}",
)


class Case(NamedTuple):
    """A mutated model. kind: one of `SHARES`. what: the base and the file. path: of the model, or of the JSONL file."""

    seed: int
    kind: str
    what: str
    path: Path


def kind_of(seed: int) -> str:
    """The kinds by their shares, interleaved."""
    order = [kind for kind, share in SHARES.items() for _ in range(share)]
    random.Random(0).shuffle(order)
    return order[seed % len(order)]


def make(seed: int, bases: Path, folder: Path) -> Case:
    """Writes the case of a seed to `folder`, which is emptied first."""
    rng, kind = random.Random(seed), kind_of(seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    what, path = _MAKERS[kind](rng, bases, folder)
    return Case(seed, kind, what, path)


def _config(rng: random.Random, bases: Path, folder: Path) -> tuple[str, Path]:
    family = rng.choice(list(CONFIGS))
    file = _copy(bases / family, folder) / "config.json"
    value = json.loads(file.read_text())
    for _ in range(rng.choice((1, 1, 2))):
        value = mutate_json(rng, value)
    file.write_bytes(dump(rng, value))
    return f"{family}/config.json", folder / "model"


def _ours(rng: random.Random, bases: Path, folder: Path) -> tuple[str, Path]:
    file = _copy(bases / "ours", folder) / "cascades.json"
    value = json.loads(file.read_text())
    value["config"] = mutate_json(rng, value["config"]) if rng.random() < 0.7 else value["config"]
    value = value if rng.random() < 0.7 else mutate_json(rng, value)
    file.write_bytes(dump(rng, value))
    return "ours/cascades.json", folder / "model"


def _gguf(rng: random.Random, bases: Path, folder: Path) -> tuple[str, Path]:
    name = rng.choice(("llama.gguf", "gemma3.gguf"))
    data = (bases / name).read_bytes()
    fields, head = gguf_fields(data)
    if rng.random() < 0.7:
        data = lie(rng, data, fields)
    else:
        data = mutate_bytes(rng, data[:head]) + data[head:]
    path = folder / "model.gguf"
    path.write_bytes(data)
    return name, path


def _safetensors(rng: random.Random, bases: Path, folder: Path) -> tuple[str, Path]:
    family = rng.choice(list(CONFIGS))
    file = rng.choice(sorted(_copy(bases / family, folder).glob("*.safetensors")))
    data = file.read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    header, rest = data[8 : 8 + size], data[8 + size :]
    how = rng.random()
    if how < 0.5:
        text = dump(rng, mutate_json(rng, json.loads(header)))
        data = struct.pack("<Q", len(text)) + text + rest
    elif how < 0.8:
        data = lie(rng, data, [(0, "<Q")])
    else:
        data = mutate_bytes(rng, data[: 8 + size]) + rest
    file.write_bytes(data)
    return f"{family}/{file.name}", folder / "model"


def _index(rng: random.Random, bases: Path, folder: Path) -> tuple[str, Path]:
    file = _copy(bases / "llama", folder) / INDEX
    value: Any = json.loads(file.read_text())
    if rng.random() < 0.5:
        place = rng.choice(_PLACES).format(bases=bases)
        for name in rng.sample(list(value["weight_map"]), k=rng.choice((1, len(value["weight_map"])))):
            value["weight_map"][name] = place
    else:
        value = mutate_json(rng, value)
    file.write_bytes(dump(rng, value))
    return f"llama/{INDEX}", folder / "model"


def _tokenizer(rng: random.Random, bases: Path, folder: Path) -> tuple[str, Path]:
    name = rng.choice(_TOKENIZER_FILES)
    family = {"spiece.model": "t5", "tokenizer.model": "gemma"}.get(name) or rng.choice(("llama", "qwen2"))
    file = _copy(bases / family, folder) / name
    if name == "tokenizer_config.json":  # the template in it is read only where there is none beside it
        (file.parent / "chat_template.jinja").unlink()
    if file.suffix == ".json":
        value = json.loads(file.read_text())
        if name == "tokenizer_config.json" and rng.random() < 0.2:
            value["chat_template"] = _template(rng, str(value["chat_template"]))
        else:
            value = mutate_json(rng, value)
        file.write_bytes(dump(rng, value))
    elif file.suffix == ".jinja":
        text = _template(rng, file.read_text())
        file.write_bytes(text.encode() if isinstance(text, str) else json.dumps(text).encode())
    else:
        file.write_bytes(mutate_bytes(rng, file.read_bytes()))
    return f"{family}/{name}", folder / "model"


def _jsonl(rng: random.Random, bases: Path, folder: Path) -> tuple[str, Path]:
    lines = []
    for _ in range(rng.choice((1, 3))):
        line = {"prompt": "the quick", "id": 7, "turns": ["one", "two"], "score": 0.5, "reference": {"text": "fox"}}
        lines.append(dump(rng, mutate_json(rng, line)))
    path = folder / "prompts.jsonl"
    path.write_bytes(rng.choice((b"\n", b"\r\n", b"\n\n")).join(lines))
    return "prompts.jsonl", path


def _template(rng: random.Random, text: str) -> Any:
    """Another template: a hostile one, a mangled one, or in another shape of JSON."""
    other = (
        rng.choice(_TEMPLATES) if rng.random() < 0.5 else mutate_bytes(rng, text.encode()).decode("utf-8", "replace")
    )
    shapes = (other, other, [{"name": "a", "template": other}], [{"name": "default"}], {"default": other}, {}, [other])
    return rng.choice(shapes)


def _copy(base: Path, folder: Path) -> Path:
    target = folder / "model"
    shutil.copytree(base, target)
    return target


def gguf_fields(data: bytes) -> tuple[list[tuple[int, str]], int]:
    """Every number in a GGUF header that a size, a count, a type or a place hangs on, and where the header ends."""
    fields: list[tuple[int, str]] = [(4, "<I"), (8, "<Q"), (16, "<Q")]
    tensors, keys = struct.unpack_from("<QQ", data, 8)
    at = 24
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

    def text(note: bool) -> None:
        nonlocal at
        if note:
            fields.append((at, "<Q"))
        at += 8 + struct.unpack_from("<Q", data, at)[0]

    for _ in range(keys):
        text(True)
        fields.append((at, "<I"))
        (kind,) = struct.unpack_from("<I", data, at)
        at += 4
        if kind == 8:
            text(True)
        elif kind == 9:
            fields += [(at, "<I"), (at + 4, "<Q")]
            inner, count = struct.unpack_from("<IQ", data, at)
            at += 12
            if inner == 8:
                for i in range(count):
                    text(i == 0)
            else:
                at += sizes[inner] * count
        else:
            if sizes[kind] in (4, 8):
                fields.append((at, "<I" if sizes[kind] == 4 else "<Q"))
            at += sizes[kind]
    for _ in range(tensors):
        text(True)
        fields.append((at, "<I"))
        (rank,) = struct.unpack_from("<I", data, at)
        fields += [(at + 4 + 8 * i, "<Q") for i in range(rank)]
        at += 4 + 8 * rank
        fields += [(at, "<I"), (at + 4, "<Q")]
        at += 12
    return fields, at


_MAKERS: dict[str, Callable[[random.Random, Path, Path], tuple[str, Path]]] = {
    "config": _config,
    "ours": _ours,
    "gguf": _gguf,
    "safetensors": _safetensors,
    "index": _index,
    "tokenizer": _tokenizer,
    "jsonl": _jsonl,
}
