"""Presets have the published number of parameters, and the facts that a count does not show."""

import pytest

from cascades import models
from cascades.errors import UserError

# Language-model parameters, a tied head counted once, as the model cards or safetensors metadata give them.
PUBLISHED = {
    "gemma_2b": 2_506_172_416,
    "gemma_7b": 8_537_680_896,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma2_27b": 27_227_128_320,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
    "llama3_8b": 8_030_261_248,
    "llama31_8b": 8_030_261_248,
    "llama32_1b": 1_235_814_400,
    "llama32_3b": 3_212_749_824,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1_7b": 1_711_376_384,
    "qwen25_0_5b": 494_032_768,
    "qwen25_1_5b": 1_543_714_304,
    "qwen25_3b": 3_085_938_688,
    "qwen25_7b": 7_615_616_512,
    "qwen25_14b": 14_770_033_664,
    "qwen25_32b": 32_763_876_352,
    "t5_small": 60_506_624,
    "t5_base": 222_903_552,
    "t5_large": 737_668_096,
    "t5_3b": 2_851_598_336,
    "t5_11b": 11_307_321_344,
    "t5_v1_1_small": 76_961_152,
    "t5_v1_1_base": 247_577_856,
    "t5_v1_1_large": 783_150_080,
    "t5_v1_1_xl": 2_849_757_184,
    "t5_v1_1_xxl": 11_135_332_352,
}

# The multimodal sizes count more: a SigLIP tower of 416,866,032, its projector, and 64 padded embedding rows.
MULTIMODAL = {"gemma3_4b": 4_300_079_472, "gemma3_12b": 12_187_325_040, "gemma3_27b": 27_432_406_640}
for _name, _total in MULTIMODAL.items():
    _width = models.preset(_name).d_model
    PUBLISHED[_name] = _total - 416_866_032 - 1152 * (_width + 1) - 64 * _width


@pytest.mark.parametrize("name", models.PRESETS)
def test_parameter_count(name):
    assert models.count_params(models.preset(name)) == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "context", "window", "global_layers"),
    [
        ("gemma_2b", 8192, None, range(18)),
        ("gemma2_2b", 8192, 4096, range(1, 26, 2)),
        ("gemma2_27b", 8192, 4096, range(1, 46, 2)),
        ("gemma3_270m", 32_768, 512, (5, 11, 17)),
        ("gemma3_1b", 32_768, 512, (5, 11, 17, 23)),
        ("gemma3_4b", 131_072, 1024, (5, 11, 17, 23, 29)),
        ("llama31_8b", 131_072, None, range(32)),
        ("qwen25_1_5b", 32_768, None, range(28)),
    ],
)
def test_context_and_windows(name, context, window, global_layers):
    config = models.preset(name)
    assert (config.context_length, config.window) == (context, window)
    assert [i for i in range(config.num_layers) if not config.is_local(i)] == list(global_layers)


@pytest.mark.parametrize(
    ("name", "scalar"), [("gemma2_9b", 256), ("gemma2_27b", 144), ("gemma3_12b", 256), ("gemma3_27b", 168)]
)
def test_query_scale(name, scalar):
    config = models.preset(name)
    scale = config.query_scale or config.head_dim**-0.5
    assert scale == pytest.approx(scalar**-0.5)


def test_families():
    gemma2, gemma3 = models.preset("gemma2_9b"), models.preset("gemma3_4b")
    assert (gemma2.attn_softcap, gemma2.final_softcap) == (50.0, 30.0)
    assert (gemma3.attn_softcap, gemma3.final_softcap) == (None, None)
    assert (gemma3.rope_theta, gemma3.local_rope_theta) == (1e6, 1e4)
    assert gemma3.rope_scaling == models.RopeScaling(kind="linear", factor=8.0)
    assert models.preset("gemma3_1b").rope_scaling is None
    assert {name: models.preset(name).rope_scaling.factor for name in ("llama31_8b", "llama32_1b")} == {
        "llama31_8b": 8.0,
        "llama32_1b": 32.0,
    }
    assert models.preset("llama3_8b").rope_scaling is None
    untied = {name for name, config in models.PRESETS.items() if not config.tied_head}
    assert untied == {name for name in models.PRESETS if name.startswith("t5_v1_1")} | {
        "llama3_8b",
        "llama31_8b",
        "qwen25_7b",
        "qwen25_14b",
        "qwen25_32b",
    }


def test_unknown_name_lists_near_ones():
    with pytest.raises(UserError, match="'gemma2-2b'.*gemma2_2b"):
        models.preset("gemma2-2b")
