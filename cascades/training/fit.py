"""The loop over steps: checkpoints that a killed run goes on from, and figures as they come."""

import math
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from cascades import ending, hosts
from cascades.checkpoints.sources import first_line
from cascades.errors import UserError
from cascades.training.step import TrainState


class Schedule(NamedTuple):
    """Steps in all, between two checkpoints, and between two evaluations."""

    steps: int
    save_every: int
    evaluate_every: int


class Progress(NamedTuple):
    """What a step, or an evaluation behind it or before the first, tells. figures: by name."""

    step: int
    figures: dict[str, float]
    evaluation: bool


class Checkpoints:
    """The two newest states of a run, in a folder."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(folder, options=options)

    @property
    def newest(self) -> int | None:
        """The step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def restore(self, like: TrainState) -> TrainState:
        """Returns the newest state, or `like` where there is none; `like` gives shapes, dtypes and places.

        `like` is consumed: no device need hold two states.

        Raises:
          UserError: it is of another drafter, or damaged.
        """
        if self.newest is None:
            return like
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        for leaf in jax.tree.leaves(like):
            leaf.delete()
        try:
            restored: Any = self._manager.restore(self.newest, args=ocp.args.StandardRestore(shapes))
            return restored
        except (ValueError, OSError, KeyError) as error:
            raise UserError(
                f"{self._folder}/{self.newest} does not hold a state of this run ({first_line(error)}): give another "
                "folder, or remove it"
            ) from None

    def save(self, state: TrainState) -> None:
        """Writes a state; what was there before stays until it is whole.

        Raises:
          UserError: the disk is full, or whatever else the operating system says.
        """
        step = int(state.step)
        if step == self.newest:
            return
        kept = "no checkpoint was written before" if self.newest is None else f"that of step {self.newest} is kept"
        # Asked before: of a disk that is full half-way, tensorstore prints hundreds of lines that nobody can catch.
        size, free = sum(leaf.nbytes for leaf in jax.tree.leaves(state)), shutil.disk_usage(self._folder).free
        if size > free:
            raise UserError(
                f"the checkpoint of step {step} takes {size / 1e6:.0f} MB and {self._folder} has {free / 1e6:.0f} MB "
                f"left; {kept}: make room and run the same command again"
            )
        try:
            self._manager.save(step, args=ocp.args.StandardSave(state))
        except (OSError, ValueError) as error:
            raise UserError(
                f"the checkpoint of step {step} could not be written to {self._folder} ({first_line(error)}); {kept}"
            ) from None

    def close(self) -> None:
        self._manager.close()


def fit(
    state: TrainState,
    checkpoints: Checkpoints,
    schedule: Schedule,
    step: Callable[[TrainState, int], tuple[TrainState, dict[str, Any]]],
    evaluate: Callable[[TrainState], dict[str, float]],
) -> Iterator[Progress]:
    """Runs the steps that are left, yielding the figures of each; the last state is in `checkpoints`.

    A run is evaluated before its first step too.

    Ctrl-C and SIGTERM end it behind a step, where the state is whole, with a checkpoint. A step decides by its number
    alone what it trains on, so that a run that goes on repeats what it had done behind its checkpoint.

    Args:
      state: where to begin, unless `checkpoints` know better.
      step: `(state, number) -> (state, figures)`; the state is consumed. evaluate: the figures of a state.

    Raises:
      UserError: a loss that is no number, before it reaches a checkpoint; a checkpoint that cannot be written.
    """
    state = checkpoints.restore(state)
    with ending.postponed() as came:
        if not int(state.step):
            yield Progress(0, evaluate(state), True)
        for number in range(int(state.step), schedule.steps):
            state, means = step(state, number)
            figures = {name: float(value) for name, value in jax.device_get(means).items()}
            _check(figures, number + 1, checkpoints.newest)
            yield Progress(number + 1, figures, False)
            last = number + 1 == schedule.steps
            if last or (number + 1) % schedule.evaluate_every == 0:
                yield Progress(number + 1, evaluate(state), True)
            signalled = hosts.most(came())  # a checkpoint takes all hosts
            if last or signalled or (number + 1) % schedule.save_every == 0:
                checkpoints.save(state)
            if signalled and not last:
                ending.interrupt(signalled)


def _check(figures: dict[str, float], step: int, newest: int | None) -> None:
    for name, value in figures.items():
        if not math.isfinite(value):
            kept = "no checkpoint was written before" if newest is None else f"the checkpoint of step {newest} is kept"
            raise UserError(
                f"{name} is {value} at step {step}; {kept}: lower LEARNING_RATE or raise WARMUP, and begin in another "
                "folder or go on from there"
            )
