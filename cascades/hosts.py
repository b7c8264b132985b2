"""The hosts of a pod: joining them, arrays that all of them hold, and which of them speaks.

Every host runs the same command and takes the same steps. Each holds the shards of its own devices; the first prints
and writes. With one process all of this is nothing.
"""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cascades.errors import UserError

T = TypeVar("T")


def join(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Joins the processes of a run; called before anything asks for a device.

    Args:
      coordinator: HOST:PORT of the first process. processes: how many there are. process: which of them this is, from
        0. None of the three is needed where the surroundings tell: on Cloud TPU, under Slurm and Open MPI.

    Raises:
      UserError: some of the three are missing or cannot be, or nobody answers.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise UserError(f"--coordinator, --processes and --process go together: give {' and '.join(missing)} too")
    if processes is not None and process is not None:
        if processes < 1 or not 0 <= process < processes:
            raise UserError(f"--process must be from 0 to {max(processes, 1) - 1} of --processes, not {process}")
        if not re.fullmatch(r"\S+:\d+", coordinator or ""):
            raise UserError(f"--coordinator must be HOST:PORT of the first process, not {coordinator!r}")
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise UserError(
            f"the processes of this run could not be joined ({reason}): leave --distributed out on one host, and give "
            "--coordinator=HOST:PORT, --processes and --process where the surroundings do not tell them"
        ) from None


def leads() -> bool:
    """Whether this process prints and writes."""
    return jax.process_index() == 0


def several() -> bool:
    return jax.process_count() > 1


def everywhere(tree: Any, mesh: Mesh) -> Any:
    """Returns arrays that every device of a mesh holds whole; each process gives the same values."""
    place = NamedSharding(mesh, PartitionSpec())

    def one(x: Any) -> jax.Array:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(one(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        value = np.asarray(x)
        return jax.make_array_from_callback(value.shape, place, lambda index: value[index])

    return jax.tree.map(one, tree)


def whole(tree: Any) -> Any:
    """Returns NumPy copies of arrays on a mesh, whole on every host."""
    return multihost_utils.process_allgather(tree, tiled=True) if several() else jax.device_get(tree)


def agreed(value: Any) -> np.ndarray:
    """Returns the first host's value."""
    return np.asarray(multihost_utils.broadcast_one_to_all(value) if several() else value)


def alike(value: int, what: str) -> None:
    """Raises a UserError on every host unless all of them have the same value."""
    if several() and len(set(np.ravel(multihost_utils.process_allgather(np.uint32(value))).tolist())) > 1:
        raise UserError(f"the hosts of this run have different {what}: give each of them the same command and files")


def lead(action: Callable[[], T]) -> T | None:
    """Does on the first host what it alone does; returns None on the others.

    Raises:
      UserError: it failed there; every host ends.
    """
    found, problem = None, None
    if leads():
        try:
            found = action()
        except UserError as error:
            problem = error
    failed = bool(agreed(np.int32(problem is not None)))
    if problem is not None:
        raise problem
    if failed:
        raise UserError("the first host could not go on, and says why")
    return found
