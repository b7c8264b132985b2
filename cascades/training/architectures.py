"""Shapes of models that are trained from nothing: each factory returns a function of the vocabulary's size."""

from collections.abc import Callable

from cascades.models import Config, DecoderConfig, T5Config

__all__ = ["decoder", "t5"]

Architecture = Callable[[int], Config]


def t5(
    layers: int = 3,
    decoder_layers: int | None = None,
    d_model: int = 256,
    d_ff: int = 512,
    heads: int = 4,
    head_dim: int = 64,
    context_length: int = 512,
) -> Architecture:
    """An encoder–decoder as T5 v1.1. decoder_layers: as many as the encoder has, where None."""

    def config(vocab_size: int) -> Config:
        return T5Config(
            vocab_size=vocab_size,
            num_layers=layers,
            num_decoder_layers=layers if decoder_layers is None else decoder_layers,
            d_model=d_model,
            d_ff=d_ff,
            num_heads=heads,
            head_dim=head_dim,
            context_length=context_length,
        )

    return config


def decoder(
    layers: int = 4,
    d_model: int = 256,
    d_ff: int = 688,
    heads: int = 4,
    kv_heads: int = 4,
    head_dim: int = 64,
    context_length: int = 512,
) -> Architecture:
    """A decoder as Llama's."""

    def config(vocab_size: int) -> Config:
        return DecoderConfig(
            vocab_size=vocab_size,
            num_layers=layers,
            d_model=d_model,
            d_ff=d_ff,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            context_length=context_length,
        )

    return config
