"""What every training run is told, whatever it trains."""

import dataclasses

from cascades import checks
from cascades.generation.placement import check_dtype, check_strategy, mesh_for, mesh_sizes, training_dtype
from cascades.sharding import Layout, layout
from cascades.training.data import BatchShape

__all__ = ["TrainingSpec"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    """The knobs of a training run.

    steps: updates. batch_size: rows of a batch. accumulate: batches of an update, whose gradients are added up.
    prompt_tokens, answer_tokens: rows are so long; examples with longer prompts are left out, longer answers are cut.
    learning_rate, warmup, weight_decay: see `training.step.optimizer`.
    held_out: the share of prompts that is never trained on. evaluate_every, save_every: in steps.
    seed: of the split, the batches and all draws.
    dtype: of what is computed, "float32" or "bfloat16"; None is float32 on any CPU, bfloat16 elsewhere. Parameters are
      trained in float32.
    mesh: (data, model), how many ways batch and models are split over all devices, see `generation.PairSpec`.
    strategy: where weights live on the mesh, a name of `sharding.STRATEGIES`.
    tensorboard: write TensorBoard's events, which needs tensorboardX.

    Raises:
      UserError: a knob with a value that it cannot have.
    """

    steps: int = 1000
    batch_size: int = 8
    accumulate: int = 1
    prompt_tokens: int = 256
    answer_tokens: int = 128
    learning_rate: float = 1e-3
    warmup: int = 50
    weight_decay: float = 0.01
    held_out: float = 0.05
    evaluate_every: int = 100
    save_every: int = 100
    seed: int = 0
    dtype: str | None = None
    mesh: tuple[int, int | None] | None = None
    strategy: str = "fsdp"
    tensorboard: bool = True

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate", "prompt_tokens", "answer_tokens"):
            checks.whole(name.upper(), getattr(self, name), 1)
        checks.positive("LEARNING_RATE", self.learning_rate)
        checks.whole("WARMUP", self.warmup, 0)
        checks.number("WEIGHT_DECAY", self.weight_decay, 0.0)
        checks.number("HELD_OUT", self.held_out, 0.0, 1.0)
        checks.whole("EVALUATE_EVERY", self.evaluate_every, 1)
        checks.whole("SAVE_EVERY", self.save_every, 1)
        checks.whole("SEED", self.seed, 0, 2**31 - 1)
        check_dtype(self.dtype)
        check_strategy("STRATEGY", self.strategy)
        if self.mesh is not None:
            mesh_sizes(self.mesh, 1)
        checks.switch("TENSORBOARD", self.tensorboard)

    @property
    def sizes(self) -> BatchShape:
        """The shape of a batch."""
        return BatchShape(self.batch_size, self.prompt_tokens, self.answer_tokens)

    @property
    def computed(self):
        """The dtype of what is computed."""
        return training_dtype(self.dtype)

    def layout(self) -> Layout | None:
        """Returns where everything lives: nowhere in particular without a mesh.

        Raises:
          UserError: see `placement.mesh_for`.
        """
        mesh = mesh_for(self.mesh, self.batch_size)
        return None if mesh is None else layout(mesh, self.strategy)
