"""The shapes of models: what differs between Gemma, Llama and Qwen2 is a field of `DecoderConfig`; T5 has its own."""

import dataclasses

from cascades.errors import UserError

ACTIVATIONS = ("silu", "gelu_tanh", "gelu", "relu")
ROPE_SCALINGS = ("linear", "llama3")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the context that a model was first trained on.

    kind: `linear` divides every frequency by `factor` (Chen et al., arXiv 2306.15595); `llama3` divides the low
      ones only and blends in between (Llama 3.1, arXiv 2407.21783).
    factor: by how much.
    low_freq_factor, high_freq_factor, original_context_length: `llama3` only; wavelengths longer than
      `original_context_length / low_freq_factor` are stretched, shorter than `… / high_freq_factor` are kept.
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_length: int = 8192

    def __post_init__(self):
        if self.kind not in ROPE_SCALINGS:
            raise UserError(f"rope scaling must be one of {', '.join(ROPE_SCALINGS)}, not {self.kind!r}.")
        if self.factor <= 0:
            raise UserError(f"rope scaling factor must be positive, not {self.factor}.")
        if self.kind == "llama3" and not 0 < self.low_freq_factor < self.high_freq_factor:
            raise UserError(
                "llama3 rope scaling needs 0 < low_freq_factor < high_freq_factor, "
                f"not {self.low_freq_factor} and {self.high_freq_factor}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder-only transformer. Hashable, so it can be static under `jax.jit`.

    context_length: most tokens that a row may hold.
    rope_theta: base of the rotary frequencies; `local_rope_theta` replaces it on sliding layers (Gemma 3).
    rope_scaling: applied to global layers only.
    window: size of the sliding window; position i sees j where 0 <= i - j < window.
    local_layers: for each layer, whether it slides; empty = none does.
    activation: of the gated MLP: `silu` (Llama, Qwen2), `gelu_tanh` (Gemma: the approximation), `gelu` or `relu`.
    qkv_bias: biases on q, k and v (Qwen2).
    qk_norm: RMSNorm over each head's queries and keys (Gemma 3).
    post_norms: RMSNorm after attention and after the MLP too (Gemma 2 and 3).
    embed_scale: multiply embeddings by sqrt(d_model), rounded to the activations' dtype (Gemma).
    attn_softcap, final_softcap: cap * tanh(x / cap) on attention scores and on logits (Gemma 2).
    query_scale: multiplies the queries; None = head_dim ** -0.5.
    tied_head: the embedding is also the output matrix.
    head_tokens: of a drafter whose head scores but so many tokens, named by its parameter `head_ids`; it never says any
      other. None is all of them.
    reads_features: of a drafter that is given, beside each token, the verifier's hidden state of the token before it
      (EAGLE, arXiv 2401.15077): the two are normed, concatenated and projected to what the first layer takes.
    """

    vocab_size: int
    num_layers: int
    d_model: int
    d_ff: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_length: int
    rope_theta: float = 10_000.0
    local_rope_theta: float | None = None
    rope_scaling: RopeScaling | None = None
    window: int | None = None
    local_layers: tuple[bool, ...] = ()
    norm_eps: float = 1e-6
    activation: str = "silu"
    qkv_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    embed_scale: bool = False
    attn_softcap: float | None = None
    final_softcap: float | None = None
    query_scale: float | None = None
    tied_head: bool = True
    head_tokens: int | None = None
    reads_features: bool = False

    def __post_init__(self):
        object.__setattr__(self, "local_layers", tuple(bool(local) for local in self.local_layers))
        sizes = ("vocab_size", "num_layers", "d_model", "d_ff", "num_heads", "num_kv_heads", "head_dim")
        for name in (*sizes, "context_length"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.num_heads % self.num_kv_heads:
            raise UserError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads}).")
        if self.head_dim % 2:
            raise UserError(f"head_dim must be even for rotary positions, not {self.head_dim}.")
        if self.activation not in ACTIVATIONS:
            raise UserError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {self.activation!r}.")
        if self.local_layers and len(self.local_layers) != self.num_layers:
            raise UserError(
                f"local_layers names {len(self.local_layers)} layers, but num_layers is {self.num_layers}: "
                "give one value a layer, or none."
            )
        if self.head_tokens is not None and not 1 <= self.head_tokens <= self.vocab_size:
            raise UserError(f"head_tokens must be from 1 to {self.vocab_size}, or None, not {self.head_tokens}.")
        if self.head_tokens is not None and self.tied_head:
            raise UserError(
                "a head of some tokens alone (head_tokens) cannot be the embedding too: set tied_head=False."
            )
        if any(self.local_layers) and (self.window is None or self.window < 1):
            raise UserError(f"sliding layers need a window of at least 1 token, not {self.window}.")

    def is_local(self, layer: int) -> bool:
        """Whether `layer` attends through the sliding window."""
        return bool(self.local_layers) and self.local_layers[layer]


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
    """An encoder–decoder. Hashable.

    num_layers, num_decoder_layers: of the two stacks.
    context_length: most tokens that a row may hold, input and output together. Relative positions have no limit of
      their own; T5 was trained on 512 and 512.
    gated: gated-GELU MLP (v1.1), else one matrix and ReLU (v1.0).
    tied_head: the embedding is also the output matrix (v1.0). scaled_head: the decoder's output is scaled by
      d_model ** -0.5 before it (v1.0).
    buckets, max_distance: of the relative positions, see `encoder_decoder.bucket`.
    start: the decoder's first token, which is T5's padding token.
    """

    vocab_size: int
    num_layers: int
    num_decoder_layers: int
    d_model: int
    d_ff: int
    num_heads: int
    head_dim: int
    context_length: int = 2048
    gated: bool = True
    tied_head: bool = False
    scaled_head: bool = False
    buckets: int = 32
    max_distance: int = 128
    start: int = 0
    norm_eps: float = 1e-6

    @property
    def reads_features(self) -> bool:
        """Such a model reads no hidden states of another."""
        return False


Config = DecoderConfig | T5Config
