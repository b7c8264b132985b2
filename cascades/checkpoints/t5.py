"""T5's architecture and tensors, from files of transformers and of T5X.

T5X: https://github.com/google-research/t5x, t5x/examples/t5/network.py.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from cascades.checkpoints import known_fields
from cascades.checkpoints.fields import Fields
from cascades.checkpoints.reader import Path, Tensor, as_it_is
from cascades.errors import UserError
from cascades.models import T5Config

HF_FAMILIES = ("t5", "mt5")
_MOST_LAYERS = 2048
# One matrix, which transformers saves under one name or several.
HF_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
HF_HEAD = "lm_head.weight"


def from_huggingface(raw: Mapping[str, Any], label: str) -> T5Config:
    """The architecture of a `config.json`.

    Raises:
      UserError: a field that is missing, unknown or not of its type, or an unknown MLP.
    """
    needed = ("vocab_size", "num_layers", "d_model", "d_ff", "num_heads", "d_kv")
    if missing := [name for name in needed if raw.get(name) is None]:
        raise UserError(f"{label} should say {', '.join(missing)}, but does not: give another file.")
    family = raw["model_type"]
    known_fields.check(raw, family, label)
    fields = Fields(raw, label)
    num_layers = fields.size("num_layers", most=_MOST_LAYERS)
    vocab_size = fields.size("vocab_size")
    tied, scaled = _head(fields, family)
    buckets = fields.size("relative_attention_num_buckets", 32, least=4)
    return T5Config(
        vocab_size=vocab_size,
        num_layers=num_layers,
        num_decoder_layers=fields.size("num_decoder_layers", num_layers, most=_MOST_LAYERS),
        d_model=fields.size("d_model"),
        d_ff=fields.size("d_ff"),
        num_heads=fields.size("num_heads"),
        head_dim=fields.size("d_kv"),
        gated=_gated(fields, family),
        tied_head=tied,
        scaled_head=scaled,
        buckets=buckets,
        max_distance=fields.size("relative_attention_max_distance", 128, least=buckets // 2 + 1),
        start=fields.size(
            "decoder_start_token_id", fields.size("pad_token_id", 0, least=0), least=0, most=vocab_size - 1
        ),
        norm_eps=fields.number("layer_norm_epsilon", 1e-6),
    )


def _gated(fields: Fields, family: str) -> bool:
    """Whether the MLP is a gated GELU; else it is one matrix and ReLU."""
    kind = fields.text("feed_forward_proj", "relu" if family == "t5" else "gated-gelu")
    if kind not in ("relu", "gated-gelu"):
        raise UserError(
            f"{fields.label} asks for the MLP {kind!r}, but only relu and gated-gelu are known: give a T5, v1.1 or "
            "FLAN-T5."
        )
    gated = kind == "gated-gelu"
    # transformers writes these from the field above, and would follow other values.
    if fields.flag("is_gated_act", gated) != gated:
        raise fields.wrong("is_gated_act", f"{gated}, as feed_forward_proj says")
    activations = ("gelu_new", "gelu_pytorch_tanh") if gated else ("relu",)
    if fields.text("dense_act_fn", activations[0]) not in activations:
        raise fields.wrong("dense_act_fn", f"{activations[0]}, as feed_forward_proj says")
    return gated


def _head(fields: Fields, family: str) -> tuple[bool, bool]:
    """Whether the embedding is the output matrix, and whether the decoder's output is scaled before it.

    The two go together: T5 v1.0 has both, v1.1 and mT5 neither. transformers 5 calls every head tied, and says in
    `scale_decoder_outputs` which T5 it was; for mT5, which is never scaled, it says nothing.
    """
    tied = fields.flag("tie_word_embeddings", family == "t5") and family == "t5"
    scaled = fields.flag("scale_decoder_outputs", tied)
    if scaled and not tied:
        raise fields.wrong("scale_decoder_outputs", "false, since the head is not the embedding")
    return scaled, scaled


def from_t5x(shapes: Mapping[str, tuple[int, ...]], label: str) -> T5Config:
    """The architecture of a T5X checkpoint, inferred from the shapes of its tensors.

    Raises:
      UserError: not a T5.
    """
    needed = ("token_embedder/embedding", "decoder/relpos_bias/rel_embedding", "decoder/layers_0/mlp/wo/kernel")
    if missing := [name for name in needed if len(shapes.get(name, ())) != 2 or 0 in shapes[name]]:
        raise UserError(f"{label} should be a T5 that T5X wrote, but lacks matrices {', '.join(missing)}: give one.")
    vocab, d_model = shapes["token_embedder/embedding"]
    num_heads, buckets = shapes["decoder/relpos_bias/rel_embedding"]
    d_ff, _ = shapes["decoder/layers_0/mlp/wo/kernel"]
    query = shapes.get("decoder/layers_0/self_attention/query/kernel", (d_model, 0))

    def count(stack: str) -> int:
        return sum(name.startswith(f"{stack}/layers_") and name.endswith("/mlp/wo/kernel") for name in shapes)

    tied = "decoder/logits_dense/kernel" not in shapes
    return T5Config(
        vocab_size=vocab,
        num_layers=count("encoder"),
        num_decoder_layers=count("decoder"),
        d_model=d_model,
        d_ff=d_ff,
        num_heads=num_heads,
        head_dim=query[-1] // num_heads,
        gated="decoder/layers_0/mlp/wi_0/kernel" in shapes,
        tied_head=tied,
        scaled_head=tied,
        buckets=buckets,
    )


class _Spelling(NamedTuple):
    """The names of tensors in one of the two formats.

    embedding, head, norm, bias: whole names; in `norm` and `bias`, {} stands for the stack. at: the prefix of a layer's
    names; {} and {} stand for its stack and number. parts: from whether a layer is the decoder's to its parts, each
    with the name of its norm and the prefix of its kernels. kernels: the ends of the kernels' names.
    transposed: kernels are stored with the contracted axes first, and tables of biases with the heads first.
    """

    embedding: str
    head: str
    norm: str
    bias: str
    at: str
    parts: Callable[[bool], Mapping[str, tuple[str, str]]]
    kernels: Mapping[str, str]
    transposed: bool


_HF_KERNELS = {"q": "q", "k": "k", "v": "v", "o": "o", "gate": "wi_0", "up": "wi_1", "plain": "wi", "down": "wo"}
_T5X_KERNELS = _HF_KERNELS | {"q": "query", "k": "key", "v": "value", "o": "out"}


def _hf_parts(decoder: bool) -> dict[str, tuple[str, str]]:
    parts = {"attn": ("layer.0.layer_norm.weight", "layer.0.SelfAttention.")}
    if decoder:
        parts["cross"] = ("layer.1.layer_norm.weight", "layer.1.EncDecAttention.")
    last = len(parts)
    return parts | {"mlp": (f"layer.{last}.layer_norm.weight", f"layer.{last}.DenseReluDense.")}


def _t5x_parts(decoder: bool) -> dict[str, tuple[str, str]]:
    if not decoder:
        parts = {"attn": ("pre_attention_layer_norm/scale", "attention/")}
    else:
        parts = {
            "attn": ("pre_self_attention_layer_norm/scale", "self_attention/"),
            "cross": ("pre_cross_attention_layer_norm/scale", "encoder_decoder_attention/"),
        }
    return parts | {"mlp": ("pre_mlp_layer_norm/scale", "mlp/")}


_HF = _Spelling(
    embedding=HF_EMBEDDINGS[0],
    head=HF_HEAD,
    norm="{}.final_layer_norm.weight",
    bias="{}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    at="{}.block.{}.",
    parts=_hf_parts,
    kernels={name: f"{theirs}.weight" for name, theirs in _HF_KERNELS.items()},
    transposed=False,
)
_T5X = _Spelling(
    embedding="token_embedder/embedding",
    head="decoder/logits_dense/kernel",
    norm="{0}/{0}_norm/scale",
    bias="{}/relpos_bias/rel_embedding",
    at="{}/layers_{}/",
    parts=_t5x_parts,
    kernels={name: f"{theirs}/kernel" for name, theirs in _T5X_KERNELS.items()},
    transposed=True,
)


def huggingface(config: T5Config, names: Collection[str] = HF_EMBEDDINGS) -> dict[Path, Tensor]:
    """The tensor of each parameter by transformers' names: matrices `[out, in]`, heads flattened.

    names: those of the file, which tell under which of its names the embedding is stored.
    """
    embedding = next((name for name in HF_EMBEDDINGS if name in names), HF_EMBEDDINGS[0])
    return _table(config, _HF._replace(embedding=embedding))


def t5x(config: T5Config) -> dict[Path, Tensor]:
    """The tensor of each parameter by T5X's names: matrices `[in, out]`, heads flattened."""
    return _table(config, _T5X)


def _table(config: T5Config, spelling: _Spelling) -> dict[Path, Tensor]:
    n, h, d, f = config.num_heads, config.head_dim, config.d_model, config.d_ff

    def matrix(name: str, out: tuple[int, ...], inner: tuple[int, ...]) -> Tensor:
        rows, columns = int(np.prod(out)), int(np.prod(inner))
        if spelling.transposed:
            return Tensor(name, (columns, rows), lambda w: np.ascontiguousarray(w.T).reshape(*out, *inner))
        flat = len(out) == len(inner) == 1
        return Tensor(name, (rows, columns), as_it_is if flat else lambda w: w.reshape(*out, *inner))

    table: dict[Path, Tensor] = {("embed", "embedding"): Tensor(spelling.embedding, (config.vocab_size, d), as_it_is)}
    if not config.tied_head:
        table["head", "kernel"] = matrix(spelling.head, (config.vocab_size,), (d,))
    kernels = {
        **dict.fromkeys("qkv", ((n, h), (d,))),
        "o": ((d,), (n, h)),
        **({"gate": ((f,), (d,))} if config.gated else {}),
        "up": ((f,), (d,)),
        "down": ((d,), (f,)),
    }
    of_part = {"attn": "qkvo", "cross": "qkvo", "mlp": [name for name in kernels if name not in "qkvo"]}
    for stack, count in (("encoder", config.num_layers), ("decoder", config.num_decoder_layers)):
        table[(f"{stack}_norm", "scale")] = Tensor(spelling.norm.format(stack), (d,), as_it_is)
        table[(f"{stack}_bias",)] = matrix(spelling.bias.format(stack), (config.buckets,), (n,))
        for i in range(count):
            at = spelling.at.format(stack, i)
            for part, (norm, before) in spelling.parts(stack == "decoder").items():
                layer = (stack, str(i))
                table[(*layer, f"{part}_norm", "scale")] = Tensor(at + norm, (d,), as_it_is)
                for name in of_part[part]:
                    theirs = spelling.kernels["plain" if name == "up" and not config.gated else name]
                    table[(*layer, part, name, "kernel")] = matrix(at + before + theirs, *kernels[name])
    return table
