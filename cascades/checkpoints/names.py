"""The names of a decoder's parameters in GGUF, Hugging Face and Google's files, and how their layouts become ours.

Ours: kernels with the contracted axis last (`q [N, H, D]`, `o [D, N, H]`, `gate [F, D]`, `down [D, F]`), rotary
channels in halves, norm scales as the effective multiplier.
"""

import re
from collections.abc import Collection, Mapping

import numpy as np

from cascades.checkpoints.reader import Path, Tensor, as_it_is
from cascades.models import DecoderConfig

# Tensors of GGUF files and Google's releases that are not the decoder's weights: tables that follow from the config,
# and image encoders.
_NOT_WEIGHTS = re.compile(r"^rope_freqs\.weight$|^SigLiPFromPatches_0/|^vision_encoder/|^embedder/mm_")
# The same for transformers' files: tables and masks that old versions saved, a table that T5 never reads, image
# encoders, and heads that draft several tokens at once.
_OTHER_PARTS = re.compile(
    r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$|\.masked_bias$"
    r"|^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$"
    r"|(^|\.)(vision_tower|vision_model|multi_modal_projector)\."
    r"|^(model\.)?mtp(_layers)?\."
)


def is_weight(name: str) -> bool:
    """Whether a tensor of a GGUF file or of Google's may belong to the decoder."""
    return not _NOT_WEIGHTS.search(name)


def may_be_read(name: str) -> bool:
    """Whether a tensor of a Hugging Face file may belong to the language model."""
    return not _OTHER_PARTS.search(name)


def gguf(config: DecoderConfig, *, interleaved: bool) -> dict[Path, Tensor]:
    """llama.cpp's names (https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py).

    Args:
      interleaved: rows of q and k are ordered as rotary pairs, as converters permute them for the `llama` architecture.
    """
    n, g, h, d, f = _sizes(config)
    table = {
        ("embed", "embedding"): Tensor("token_embd.weight", (config.vocab_size, d), as_it_is),
        ("final_norm", "scale"): Tensor("output_norm.weight", (d,), as_it_is),
    }
    if not config.tied_head:
        table["head", "kernel"] = Tensor("output.weight", (config.vocab_size, d), as_it_is)
    heads = _halves if interleaved else _reshape
    for i in range(config.num_layers):
        layer, blk = ("layers", str(i)), f"blk.{i}."
        table |= {
            (*layer, "attn_norm", "scale"): Tensor(f"{blk}attn_norm.weight", (d,), as_it_is),
            (*layer, "q", "kernel"): Tensor(f"{blk}attn_q.weight", (n * h, d), heads(n, h, d)),
            (*layer, "k", "kernel"): Tensor(f"{blk}attn_k.weight", (g * h, d), heads(g, h, d)),
            (*layer, "v", "kernel"): Tensor(f"{blk}attn_v.weight", (g * h, d), _reshape(g, h, d)),
            (*layer, "o", "kernel"): Tensor(f"{blk}attn_output.weight", (d, n * h), _reshape(d, n, h)),
            (*layer, "mlp_norm", "scale"): Tensor(f"{blk}ffn_norm.weight", (d,), as_it_is),
            (*layer, "gate", "kernel"): Tensor(f"{blk}ffn_gate.weight", (f, d), as_it_is),
            (*layer, "up", "kernel"): Tensor(f"{blk}ffn_up.weight", (f, d), as_it_is),
            (*layer, "down", "kernel"): Tensor(f"{blk}ffn_down.weight", (d, f), as_it_is),
        }
        if config.qkv_bias:
            table |= {
                (*layer, "q", "bias"): Tensor(f"{blk}attn_q.bias", (n * h,), heads(n, h)),
                (*layer, "k", "bias"): Tensor(f"{blk}attn_k.bias", (g * h,), heads(g, h)),
                (*layer, "v", "bias"): Tensor(f"{blk}attn_v.bias", (g * h,), _reshape(g, h)),
            }
        if config.qk_norm:
            table |= {
                (*layer, "q_norm", "scale"): Tensor(f"{blk}attn_q_norm.weight", (h,), as_it_is),
                (*layer, "k_norm", "scale"): Tensor(f"{blk}attn_k_norm.weight", (h,), as_it_is),
            }
        if config.post_norms:
            table |= {
                (*layer, "post_attn_norm", "scale"): Tensor(f"{blk}post_attention_norm.weight", (d,), as_it_is),
                (*layer, "post_mlp_norm", "scale"): Tensor(f"{blk}post_ffw_norm.weight", (d,), as_it_is),
            }
    return table


def embeddings(names: Collection[str]) -> tuple[str, str, list[str]]:
    """The prefix of transformers' names (`model.`), the name of the embedding, and the names of output heads."""
    first, table = "layers.0.input_layernorm.weight", "embed_tokens.weight"
    ends = ((name, end) for end in (first, table) for name in names if name == end or name.endswith(f".{end}"))
    name, end = next(ends, (f"model.{table}", table))
    root = name.removesuffix(end)
    return root, f"{root}{table}", sorted(each for each in names if each.split(".")[-2:] == ["lm_head", "weight"])


def huggingface(config: DecoderConfig, names: Collection[str]) -> dict[Path, Tensor]:
    """The tensor of each parameter by transformers' names; `names` show their prefix, `language_model.` for example."""
    n, g, h, d, f = _sizes(config)
    norm = _one_plus if config.embed_scale else as_it_is  # Gemma stores `scale - 1`
    root, embedding, heads = embeddings(names)
    if config.tied_head and embedding not in names and heads:
        embedding = heads[0]  # some writers save the tied matrix under this name alone
    table = {
        ("embed", "embedding"): Tensor(embedding, (config.vocab_size, d), as_it_is),
        ("final_norm", "scale"): Tensor(f"{root}norm.weight", (d,), norm),
    }
    if not config.tied_head:
        head = heads[0] if heads else "lm_head.weight"
        table["head", "kernel"] = Tensor(head, (config.vocab_size, d), as_it_is)
    mlp_norm = "pre_feedforward_layernorm" if config.post_norms else "post_attention_layernorm"
    for i in range(config.num_layers):
        layer, at = ("layers", str(i)), f"{root}layers.{i}."
        table |= {
            (*layer, "attn_norm", "scale"): Tensor(f"{at}input_layernorm.weight", (d,), norm),
            (*layer, "q", "kernel"): Tensor(f"{at}self_attn.q_proj.weight", (n * h, d), _reshape(n, h, d)),
            (*layer, "k", "kernel"): Tensor(f"{at}self_attn.k_proj.weight", (g * h, d), _reshape(g, h, d)),
            (*layer, "v", "kernel"): Tensor(f"{at}self_attn.v_proj.weight", (g * h, d), _reshape(g, h, d)),
            (*layer, "o", "kernel"): Tensor(f"{at}self_attn.o_proj.weight", (d, n * h), _reshape(d, n, h)),
            (*layer, "mlp_norm", "scale"): Tensor(f"{at}{mlp_norm}.weight", (d,), norm),
            (*layer, "gate", "kernel"): Tensor(f"{at}mlp.gate_proj.weight", (f, d), as_it_is),
            (*layer, "up", "kernel"): Tensor(f"{at}mlp.up_proj.weight", (f, d), as_it_is),
            (*layer, "down", "kernel"): Tensor(f"{at}mlp.down_proj.weight", (d, f), as_it_is),
        }
        if config.qkv_bias:
            table |= {
                (*layer, "q", "bias"): Tensor(f"{at}self_attn.q_proj.bias", (n * h,), _reshape(n, h)),
                (*layer, "k", "bias"): Tensor(f"{at}self_attn.k_proj.bias", (g * h,), _reshape(g, h)),
                (*layer, "v", "bias"): Tensor(f"{at}self_attn.v_proj.bias", (g * h,), _reshape(g, h)),
            }
        if config.qk_norm:
            table |= {
                (*layer, "q_norm", "scale"): Tensor(f"{at}self_attn.q_norm.weight", (h,), norm),
                (*layer, "k_norm", "scale"): Tensor(f"{at}self_attn.k_norm.weight", (h,), norm),
            }
        if config.post_norms:
            table |= {
                (*layer, "post_attn_norm", "scale"): Tensor(f"{at}post_attention_layernorm.weight", (d,), norm),
                (*layer, "post_mlp_norm", "scale"): Tensor(f"{at}post_feedforward_layernorm.weight", (d,), norm),
            }
    return table


def gemma(config: DecoderConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[Path, Tensor]:
    """Google's names, without the leading `transformer/` (https://github.com/google-deepmind/gemma, gm/nn/_modules.py).

    Models with as many key heads as query heads have one `qkv_einsum`. From Gemma 2 9B on, the matrix of gate and up is
    stored transposed, which only `shapes` tell.
    """
    n, g, h, d, f = _sizes(config)
    table = {
        ("embed", "embedding"): Tensor("embedder/input_embedding", (config.vocab_size, d), as_it_is),
        ("final_norm", "scale"): Tensor("final_norm/scale", (d,), _one_plus),
    }
    for i in range(config.num_layers):
        layer, at = ("layers", str(i)), f"layer_{i}/"
        gating = shapes.get(f"{at}mlp/gating_einsum")
        transposed = gating is not None and tuple(gating) == (2, f, d)
        gate = (lambda j: lambda w: w[j]) if transposed else (lambda j: lambda w: w[j].T)
        gate_shape = (2, f, d) if transposed else (2, d, f)
        table |= {
            (*layer, "attn_norm", "scale"): Tensor(f"{at}pre_attention_norm/scale", (d,), _one_plus),
            (*layer, "o", "kernel"): Tensor(f"{at}attn/attn_vec_einsum/w", (n, h, d), lambda w: w.transpose(2, 0, 1)),
            (*layer, "mlp_norm", "scale"): Tensor(f"{at}pre_ffw_norm/scale", (d,), _one_plus),
            (*layer, "gate", "kernel"): Tensor(f"{at}mlp/gating_einsum", gate_shape, gate(0)),
            (*layer, "up", "kernel"): Tensor(f"{at}mlp/gating_einsum", gate_shape, gate(1)),
            (*layer, "down", "kernel"): Tensor(f"{at}mlp/linear", (f, d), lambda w: w.T),
        }
        if n == g:
            for j, name in enumerate("qkv"):
                table[(*layer, name, "kernel")] = Tensor(f"{at}attn/qkv_einsum/w", (3, n, d, h), _einsum(j))
        else:
            table[(*layer, "q", "kernel")] = Tensor(f"{at}attn/q_einsum/w", (n, d, h), lambda w: w.swapaxes(1, 2))
            for j, name in enumerate("kv"):
                table[(*layer, name, "kernel")] = Tensor(f"{at}attn/kv_einsum/w", (2, g, d, h), _einsum(j))
        if config.qk_norm:
            table |= {
                (*layer, "q_norm", "scale"): Tensor(f"{at}attn/_query_norm/scale", (h,), _one_plus),
                (*layer, "k_norm", "scale"): Tensor(f"{at}attn/_key_norm/scale", (h,), _one_plus),
            }
        if config.post_norms:
            table |= {
                (*layer, "post_attn_norm", "scale"): Tensor(f"{at}post_attention_norm/scale", (d,), _one_plus),
                (*layer, "post_mlp_norm", "scale"): Tensor(f"{at}post_ffw_norm/scale", (d,), _one_plus),
            }
    return table


def _sizes(config: DecoderConfig) -> tuple[int, int, int, int, int]:
    return config.num_heads, config.num_kv_heads, config.head_dim, config.d_model, config.d_ff


def _one_plus(w: np.ndarray) -> np.ndarray:
    return w + np.ones((), w.dtype)


def _reshape(*shape: int):
    return lambda w: w.reshape(shape)


def _halves(heads: int, head_dim: int, *rest: int):
    """Undoes llama.cpp's permutation: channels (2i, 2i + 1) go back to (i, i + H/2)."""
    return lambda w: w.reshape(heads, head_dim // 2, 2, *rest).swapaxes(1, 2).reshape(heads, head_dim, *rest)


def _einsum(index: int):
    return lambda w: w[index].swapaxes(1, 2)
