"""Published decoder shapes, by name. The Coder, instruction-tuned and base variants of a size share one shape."""

import dataclasses
import difflib

from cascades.errors import UserError
from cascades.models.config import Config, DecoderConfig, RopeScaling, T5Config


def _gemma(**sizes) -> DecoderConfig:
    """Gemma 1, arXiv 2403.08295."""
    return DecoderConfig(
        vocab_size=256_000, head_dim=256, context_length=8192, activation="gelu_tanh", embed_scale=True, **sizes
    )


def _gemma2(*, num_layers: int, head_dim: int = 256, query_scale: float | None = None, **sizes) -> DecoderConfig:
    """Gemma 2, arXiv 2408.00118: every other layer slides, the first one included; soft caps; norms on both sides."""
    return DecoderConfig(
        vocab_size=256_000,
        num_layers=num_layers,
        head_dim=head_dim,
        context_length=8192,
        window=4096,
        local_layers=tuple(i % 2 == 0 for i in range(num_layers)),
        activation="gelu_tanh",
        post_norms=True,
        embed_scale=True,
        attn_softcap=50.0,
        final_softcap=30.0,
        query_scale=query_scale,
        **sizes,
    )


def _gemma3(*, num_layers: int, head_dim: int = 256, window: int = 1024, **sizes) -> DecoderConfig:
    """Gemma 3, arXiv 2503.19786: five sliding layers to a global one, two rope bases, normed queries and keys."""
    return DecoderConfig(
        vocab_size=262_144,
        num_layers=num_layers,
        head_dim=head_dim,
        rope_theta=1_000_000.0,
        local_rope_theta=10_000.0,
        window=window,
        local_layers=tuple(i % 6 != 5 for i in range(num_layers)),
        activation="gelu_tanh",
        qk_norm=True,
        post_norms=True,
        embed_scale=True,
        **sizes,
    )


def _llama3(**sizes) -> DecoderConfig:
    """Llama 3, arXiv 2407.21783."""
    return DecoderConfig(vocab_size=128_256, num_kv_heads=8, rope_theta=500_000.0, norm_eps=1e-5, **sizes)


def _smollm2(*, rope_theta: float = 100_000.0, **sizes) -> DecoderConfig:
    """SmolLM2, arXiv 2502.02737: the Llama architecture."""
    return DecoderConfig(
        vocab_size=49_152, head_dim=64, context_length=8192, rope_theta=rope_theta, norm_eps=1e-5, **sizes
    )


def _qwen25(*, vocab_size: int = 151_936, **sizes) -> DecoderConfig:
    """Qwen2.5, arXiv 2412.15115 and 2409.12186 (Coder)."""
    return DecoderConfig(
        vocab_size=vocab_size, context_length=32_768, rope_theta=1_000_000.0, norm_eps=1e-6, qkv_bias=True, **sizes
    )


_LLAMA31_ROPE = RopeScaling(
    kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context_length=8192
)
_LLAMA32_ROPE = dataclasses.replace(_LLAMA31_ROPE, factor=32.0)
_GEMMA3_LONG = {"context_length": 131_072, "rope_scaling": RopeScaling(kind="linear", factor=8.0)}


def _t5(layers: int, d_model: int, d_ff: int, num_heads: int, *, v11: bool, head_dim: int = 64) -> T5Config:
    """T5, arXiv 1910.10683; v1.1 has a gated MLP and a head of its own."""
    return T5Config(
        vocab_size=32_128,
        num_layers=layers,
        num_decoder_layers=layers,
        d_model=d_model,
        d_ff=d_ff,
        num_heads=num_heads,
        head_dim=head_dim,
        gated=v11,
        tied_head=not v11,
        scaled_head=not v11,
    )


PRESETS: dict[str, Config] = {
    "gemma_2b": _gemma(num_layers=18, d_model=2048, d_ff=16_384, num_heads=8, num_kv_heads=1),
    "gemma_7b": _gemma(num_layers=28, d_model=3072, d_ff=24_576, num_heads=16, num_kv_heads=16),
    "gemma2_2b": _gemma2(num_layers=26, d_model=2304, d_ff=9216, num_heads=8, num_kv_heads=4),
    "gemma2_9b": _gemma2(num_layers=42, d_model=3584, d_ff=14_336, num_heads=16, num_kv_heads=8),
    "gemma2_27b": _gemma2(
        num_layers=46, d_model=4608, d_ff=36_864, num_heads=32, num_kv_heads=16, head_dim=128, query_scale=144**-0.5
    ),
    "gemma3_270m": _gemma3(
        num_layers=18, d_model=640, d_ff=2048, num_heads=4, num_kv_heads=1, window=512, context_length=32_768
    ),
    "gemma3_1b": _gemma3(
        num_layers=26, d_model=1152, d_ff=6912, num_heads=4, num_kv_heads=1, window=512, context_length=32_768
    ),
    "gemma3_4b": _gemma3(num_layers=34, d_model=2560, d_ff=10_240, num_heads=8, num_kv_heads=4, **_GEMMA3_LONG),
    "gemma3_12b": _gemma3(num_layers=48, d_model=3840, d_ff=15_360, num_heads=16, num_kv_heads=8, **_GEMMA3_LONG),
    "gemma3_27b": _gemma3(
        num_layers=62,
        d_model=5376,
        d_ff=21_504,
        num_heads=32,
        num_kv_heads=16,
        head_dim=128,
        query_scale=168**-0.5,
        **_GEMMA3_LONG,
    ),
    "llama3_8b": _llama3(
        num_layers=32, d_model=4096, d_ff=14_336, num_heads=32, head_dim=128, context_length=8192, tied_head=False
    ),
    "llama31_8b": _llama3(
        num_layers=32,
        d_model=4096,
        d_ff=14_336,
        num_heads=32,
        head_dim=128,
        context_length=131_072,
        rope_scaling=_LLAMA31_ROPE,
        tied_head=False,
    ),
    "llama32_1b": _llama3(
        num_layers=16,
        d_model=2048,
        d_ff=8192,
        num_heads=32,
        head_dim=64,
        context_length=131_072,
        rope_scaling=_LLAMA32_ROPE,
    ),
    "llama32_3b": _llama3(
        num_layers=28,
        d_model=3072,
        d_ff=8192,
        num_heads=24,
        head_dim=128,
        context_length=131_072,
        rope_scaling=_LLAMA32_ROPE,
    ),
    "smollm2_135m": _smollm2(num_layers=30, d_model=576, d_ff=1536, num_heads=9, num_kv_heads=3),
    "smollm2_360m": _smollm2(num_layers=32, d_model=960, d_ff=2560, num_heads=15, num_kv_heads=5),
    "smollm2_1_7b": _smollm2(
        num_layers=24, d_model=2048, d_ff=8192, num_heads=32, num_kv_heads=32, rope_theta=130_000.0
    ),
    "qwen25_0_5b": _qwen25(num_layers=24, d_model=896, d_ff=4864, num_heads=14, num_kv_heads=2, head_dim=64),
    "qwen25_1_5b": _qwen25(num_layers=28, d_model=1536, d_ff=8960, num_heads=12, num_kv_heads=2, head_dim=128),
    "qwen25_3b": _qwen25(num_layers=36, d_model=2048, d_ff=11_008, num_heads=16, num_kv_heads=2, head_dim=128),
    "qwen25_7b": _qwen25(
        vocab_size=152_064,
        num_layers=28,
        d_model=3584,
        d_ff=18_944,
        num_heads=28,
        num_kv_heads=4,
        head_dim=128,
        tied_head=False,
    ),
    "qwen25_14b": _qwen25(
        vocab_size=152_064,
        num_layers=48,
        d_model=5120,
        d_ff=13_824,
        num_heads=40,
        num_kv_heads=8,
        head_dim=128,
        tied_head=False,
    ),
    "qwen25_32b": _qwen25(
        vocab_size=152_064,
        num_layers=64,
        d_model=5120,
        d_ff=27_648,
        num_heads=40,
        num_kv_heads=8,
        head_dim=128,
        tied_head=False,
    ),
    "t5_small": _t5(6, 512, 2048, 8, v11=False),
    "t5_base": _t5(12, 768, 3072, 12, v11=False),
    "t5_large": _t5(24, 1024, 4096, 16, v11=False),
    "t5_3b": _t5(24, 1024, 16_384, 32, v11=False, head_dim=128),
    "t5_11b": _t5(24, 1024, 65_536, 128, v11=False, head_dim=128),
    "t5_v1_1_small": _t5(8, 512, 1024, 6, v11=True),
    "t5_v1_1_base": _t5(12, 768, 2048, 12, v11=True),
    "t5_v1_1_large": _t5(24, 1024, 2816, 16, v11=True),
    "t5_v1_1_xl": _t5(24, 2048, 5120, 32, v11=True),
    "t5_v1_1_xxl": _t5(24, 4096, 10_240, 64, v11=True),
}


def preset(name: str) -> Config:
    """Returns the shape called `name`.

    Raises:
      UserError: no such preset; the message lists near names.
    """
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.5) or sorted(PRESETS)
    raise UserError(f"there is no preset {name!r}: did you mean {' or '.join(near)}?")


def decoder_preset(name: str) -> DecoderConfig:
    """Returns the shape of the decoder called `name`.

    Raises:
      UserError: no such preset, or one of an encoder–decoder.
    """
    config = preset(name)
    if not isinstance(config, DecoderConfig):
        raise UserError(f"{name} is an encoder–decoder, but a decoder was expected, such as gemma2_2b")
    return config
