"""A tiny pair on disk, random weights and all, and ways to run `launch/decode.py` on it."""

import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
import tokenizers
from absl import flags
from absl.testing import flagsaver
from safetensors.numpy import save_file
from tokenizers import decoders, models, pre_tokenizers, trainers

from cascades import config
from cascades.generation import ModelSpec, PairSpec, PromptSpec, Settings
from cascades.models import DecoderConfig, decoder

ROOT = Path(__file__).resolve().parents[1]
CONTEXT = 320
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = ["the quick brown fox jumps over the lazy dog", "a small model drafts and a large one verifies", "12 + 3"]
STRANGE = [text[::-1] for text in CORPUS]


@dataclasses.dataclass(frozen=True)
class Files:
    """Paths, as strings. verifier: GGUF. drafter: a folder of Hugging Face's, one layer less. chat: the verifier with a
    chat template. stranger: a drafter with another vocabulary. home: where the package keeps what it caches."""

    verifier: str
    drafter: str
    chat: str
    stranger: str
    home: str


def write(folder: Path) -> Files:
    """Writes the models. The drafter is the verifier without its last layer, which changes little."""
    tokenizer, params = train(CORPUS), weights()
    shorter = params | {"layers": {"0": params["layers"]["0"]}}
    write_gguf(folder / "verifier.gguf", params, tokenizer)
    write_gguf(folder / "chat.gguf", params, tokenizer, CHATML)
    write_folder(folder / "drafter", shorter, tokenizer)
    write_folder(folder / "stranger", shorter, train(STRANGE))
    names = ("verifier.gguf", "drafter", "chat.gguf", "stranger", "home")
    return Files(*(str(folder / name) for name in names))


def train(corpus) -> tokenizers.Tokenizer:
    """Returns a byte-level BPE of 300 tokens: control tokens, every byte, merges."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    options = {"vocab_size": 300, "initial_alphabet": alphabet, "show_progress": False}
    trainer = trainers.BpeTrainer(special_tokens=list(SPECIALS), **options)
    tokenizer.train_from_iterator(corpus * 9, trainer)
    assert tokenizer.get_vocab_size() == 300, "the corpus is too small"
    return tokenizer


def shape(layers: int) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=300,
        num_layers=layers,
        d_model=32,
        d_ff=48,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        context_length=CONTEXT,
        rope_theta=1e4,
        norm_eps=1e-5,
        tied_head=False,
    )


def weights() -> dict:
    """Returns parameters that mostly write ASCII, at length, and agree with their own first layer now and then.

    Coordinate 0 of every embedding is large, so that column 0 of the head works as a bias.
    """
    rng = np.random.default_rng(3)
    template = jax.eval_shape(decoder(shape(2)).init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: rng.normal(0, leaf.shape[-1] ** -0.5, leaf.shape).astype(np.float32), template)
    for scale in jax.tree.leaves([params["final_norm"]] + [params["layers"][i][n] for i in "01" for n in NORMS]):
        scale[...] = 1
    params["embed"]["embedding"] *= 6
    params["embed"]["embedding"][:, 0] = 4
    params["head"]["kernel"] *= 3
    bias = params["head"]["kernel"][:, 0]
    bias[:] = 0
    bias[:3] = -3  # control tokens
    table = train(CORPUS)
    for token in range(3, 300):
        text = table.decode([token])
        if not (text.isascii() and text.isprintable()):
            bias[token] = -2
    params["layers"]["1"]["down"]["kernel"] *= 0.5
    params["layers"]["1"]["o"]["kernel"] *= 0.5
    return params


NORMS = ("attn_norm", "mlp_norm")


def write_gguf(path: Path, params: dict, tokenizer: tokenizers.Tokenizer, template: str | None = None) -> None:
    """Writes a llama as llama.cpp's converter does, its rows of q and k permuted."""
    settings = shape(len(params["layers"]))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(settings.num_layers)
    writer.add_context_length(settings.context_length)
    writer.add_embedding_length(settings.d_model)
    writer.add_feed_forward_length(settings.d_ff)
    writer.add_head_count(settings.num_heads)
    writer.add_head_count_kv(settings.num_kv_heads)
    writer.add_key_length(settings.head_dim)
    writer.add_layer_norm_rms_eps(settings.norm_eps)
    writer.add_rope_freq_base(settings.rope_theta)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([tokenizer.id_to_token(i) for i in range(300)])
    writer.add_token_types([3] * len(SPECIALS) + [1] * (300 - len(SPECIALS)))
    writer.add_token_merges([" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]])
    writer.add_eos_token_id(2)
    writer.add_bos_token_id(1)
    writer.add_add_bos_token(False)
    if template:
        writer.add_chat_template(template)

    def interleaved(kernel):
        heads, size, width = kernel.shape
        return kernel.reshape(heads, 2, size // 2, width).swapaxes(1, 2).reshape(heads * size, width)

    tensors = {
        "token_embd.weight": params["embed"]["embedding"],
        "output_norm.weight": params["final_norm"]["scale"],
        "output.weight": params["head"]["kernel"],
    }
    for i, layer in params["layers"].items():
        at = f"blk.{i}."
        tensors[f"{at}attn_q.weight"] = interleaved(layer["q"]["kernel"])
        tensors[f"{at}attn_k.weight"] = interleaved(layer["k"]["kernel"])
        tensors[f"{at}attn_v.weight"] = layer["v"]["kernel"].reshape(-1, settings.d_model)
        tensors[f"{at}attn_output.weight"] = layer["o"]["kernel"].reshape(settings.d_model, -1)
        tensors |= {f"{at}ffn_{name}.weight": layer[name]["kernel"] for name in ("gate", "up", "down")}
        tensors[f"{at}attn_norm.weight"] = layer["attn_norm"]["scale"]
        tensors[f"{at}ffn_norm.weight"] = layer["mlp_norm"]["scale"]
    for name, value in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_folder(folder: Path, params: dict, tokenizer: tokenizers.Tokenizer) -> None:
    """Writes a llama as transformers does."""
    settings = shape(len(params["layers"]))
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": SPECIALS[2], "add_bos_token": False}))
    raw = {
        "model_type": "llama",
        "vocab_size": settings.vocab_size,
        "num_hidden_layers": settings.num_layers,
        "hidden_size": settings.d_model,
        "intermediate_size": settings.d_ff,
        "num_attention_heads": settings.num_heads,
        "num_key_value_heads": settings.num_kv_heads,
        "head_dim": settings.head_dim,
        "max_position_embeddings": settings.context_length,
        "rope_theta": settings.rope_theta,
        "rms_norm_eps": settings.norm_eps,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(raw))
    tensors = {
        "model.embed_tokens.weight": params["embed"]["embedding"],
        "model.norm.weight": params["final_norm"]["scale"],
        "lm_head.weight": params["head"]["kernel"],
    }
    for i, layer in params["layers"].items():
        at = f"model.layers.{i}."
        for name in "qkv":
            tensors[f"{at}self_attn.{name}_proj.weight"] = layer[name]["kernel"].reshape(-1, settings.d_model)
        tensors[f"{at}self_attn.o_proj.weight"] = layer["o"]["kernel"].reshape(settings.d_model, -1)
        tensors |= {f"{at}mlp.{name}_proj.weight": layer[name]["kernel"] for name in ("gate", "up", "down")}
        tensors[f"{at}input_layernorm.weight"] = layer["attn_norm"]["scale"]
        tensors[f"{at}post_attention_layernorm.weight"] = layer["mlp_norm"]["scale"]
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / "model.safetensors")


# Running the launcher.

PATIENCE = 600  # seconds; on the busiest machine only a process that hangs takes longer


def knobs(**values) -> list[str]:
    """Returns `--gin.NAME=VALUE` of every keyword; strings are quoted, but for those that begin with @."""

    def text(value):
        return (
            value if isinstance(value, str) and value.startswith("@") else "1e999" if value == math.inf else repr(value)
        )

    return [f"--gin.{name}={text(value)}" for name, value in values.items()]


def pair(files: Files, **others) -> list[str]:
    """Returns the knobs that choose the tiny pair, and others. Given costs: nothing depends on the clock."""
    k_max = others.get("K_MAX", 4)
    return knobs(
        **{
            "VERIFIER": files.verifier,
            "DRAFTER": files.drafter,
            "K_MAX": k_max,
            "COSTS": (0.2, (1.0,) * (int(k_max) + 1)),
            "MAX_NEW_TOKENS": 24,
            **others,
        }
    )


def launch(*arguments: str, config_file: str | None = "configs/decode.gin") -> int:
    """Runs `launch/decode.py` in this process; returns its exit code."""
    if "input" not in flags.FLAGS:
        spec = importlib.util.spec_from_file_location("launch_decode", ROOT / "launch" / "decode.py")
        assert spec and spec.loader
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    chosen = [f"--config={config_file}"] if config_file else []
    return call("cascades.runs.decode.decode", *chosen, *arguments, names=("prompt", "input", "output", "shard"))


def call(function: str, *arguments: str, names: tuple[str, ...] = ()) -> int:
    """Runs a launcher's function, by its dotted path, in this process; returns its exit code."""
    base = f"configs/{function.rpartition('.')[2]}.gin"
    with flagsaver.flagsaver():
        try:
            config.run(function, base, flags=names, argv=["launcher.py", *arguments])
        except SystemExit as stop:
            assert isinstance(stop.code, int)
            return stop.code
    return 0


def specs(*, verifier: Any, drafter: Any = None, **knobs: Any) -> dict[str, Any]:
    """Returns the arguments of a run function, from knobs by the names of the fields of its specs.

    Those of the drafter's model begin with `drafter_`. What belongs to no spec stays an argument.
    """

    def fields(kind: type, prefix: str = "") -> dict[str, Any]:
        names = [field.name for field in dataclasses.fields(kind) if f"{prefix}{field.name}" in knobs]
        return {name: knobs.pop(f"{prefix}{name}") for name in names}

    small = ModelSpec(uri=drafter, **fields(ModelSpec, "drafter_"))
    pair = PairSpec(verifier=ModelSpec(uri=verifier, **fields(ModelSpec)), drafter=small, **fields(PairSpec))
    return {
        "pair": pair,
        "settings": Settings(**fields(Settings)),
        "prompts": PromptSpec(**fields(PromptSpec)),
        **knobs,
    }


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "launch" / "decode.py"), "--config=configs/decode.gin", *arguments]


def environment(files: Files) -> dict[str, str]:
    """Returns the environment of a subprocess: the package is found, nothing is written to the real cache."""
    return os.environ | {"PYTHONPATH": str(ROOT), "CASCADES_CACHE": files.home, "JAX_PLATFORMS": "cpu"}


def run(files: Files, *arguments: str, **options) -> subprocess.CompletedProcess:
    """Runs `launch/decode.py` in a process of its own, from another folder."""
    settings = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": PATIENCE} | options
    return subprocess.run(command(*arguments), env=environment(files), cwd=Path(files.verifier).parent, **settings)


def lines(path) -> list[dict]:
    """Returns the objects of a JSONL file, every line of which must be whole."""
    text = Path(path).read_text(encoding="utf-8")
    assert text.endswith("\n") or not text
    return [json.loads(line) for line in text.split("\n") if line]
