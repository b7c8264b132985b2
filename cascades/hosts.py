"""The hosts of a pod: joining them, arrays that all of them hold, and which of them speaks.

Every host runs the same command and takes the same steps. Each holds the shards of its own devices; the first prints
and writes. With one process all of this is nothing.
"""

import itertools
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed  # texts are exchanged before any device is asked for; jax has no public name for it
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cascades import ending, lifeline
from cascades.errors import UserError

T = TypeVar("T")

FLAGS = ("distributed", "coordinator", "processes", "process")  # of a launcher's command line, for `join`
_PATHS = ("input", "output", "output_dir")  # flags whose values may differ from host to host
_JOINING = 300  # seconds that hosts wait for each other at the start
_HEARTBEAT = 40  # seconds without a sign of life after which jax takes a host for gone: its machine, or the network
_LEAVING = 60  # seconds that hosts wait for each other at the end
_OFTEN = 0.1  # seconds between two looks at what others say
_SHOWN = 3  # differences that a sentence names
_agreements = itertools.count()


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
    # What a host waits for in vain jax tells by aborting: the timer comes before it.
    alone = threading.Timer(_JOINING, ending.leave, (2, f"error: {_not_joined('nobody answered')}"))
    alone.daemon = True
    alone.start()
    try:
        # SIGTERM would tell jax alone, which waits for a checkpoint; here it ends a run, see `ending`.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            initialization_timeout=2 * _JOINING,
            heartbeat_timeout_seconds=_HEARTBEAT,
            shutdown_timeout_seconds=_LEAVING,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(_not_joined(str(error).strip().split("\n")[0].rstrip("."))) from None
    finally:
        alone.cancel()
    surroundings = {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", ""), "the version of jax": jax.__version__}
    agree(surroundings | {"the number of processes": str(distributed.global_state.num_processes)})


def join_by(arguments: MutableMapping[str, Any]) -> None:
    """Takes `FLAGS` out of what a launcher was given, joins if one of them is set, and ends as the others do.

    Within `ending.told`.
    """
    given = {name: arguments.pop(name) for name in FLAGS if name in arguments}
    if given.pop("distributed", False) or given:
        join(**given)
        _watch()


def _not_joined(reason: str) -> str:
    return (
        f"the processes of this run could not be joined ({reason}): leave --distributed out on one host, and give "
        "--coordinator=HOST:PORT, --processes and --process where the surroundings do not tell them"
    )


def _watch() -> None:
    """Lets a host that ends early end the others."""
    state, name = distributed.global_state, "cascades/lifeline"
    assert state.client is not None and state.coordinator_address is not None
    client, first = state.client, state.coordinator_address.rpartition(":")[0].strip("[]")
    line = lifeline.connect(
        state.process_id,
        state.num_processes,
        first,
        lambda text: client.key_value_set(f"{name}/0", text),
        lambda: next(_texts(name)),
    )
    if line is not None:
        ending.together(ending.Others(state.process_id, line.tell, line.heard, line.finish))


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


def compare(arguments: Mapping[str, Any], bindings: Mapping[str, str]) -> None:
    """Raises a UserError on every host unless all were given the same command line and the same configuration.

    What belongs to a host may differ: its number, and where its files are; but not whether a file is given.
    """
    given = {f"--{name}": "given" if name in _PATHS else repr(value) for name, value in arguments.items()}
    agree(given | dict(bindings))


def agree(facts: Mapping[str, str]) -> None:
    """Raises a UserError on every host unless all of them say the same of the same things; it asks for no device."""
    state = distributed.global_state
    if state.client is None:
        return
    name = f"cascades/agreement/{next(_agreements)}"
    state.client.key_value_set(f"{name}/{state.process_id}", json.dumps(dict(facts)))
    said: list[Mapping[str, str]] = []
    for text in _texts(name):
        said.append(json.loads(text))
        if problem := disagreement(said):
            raise UserError(problem)


def _texts(name: str) -> Iterator[str]:
    """Yields what each host set under a name, from the first host on, once it is there.

    jax's own waiting would let no other thread of Python run, such as the one that listens for hosts that end.

    Raises:
      UserError: a host says nothing.
    """
    state = distributed.global_state
    assert state.client is not None
    answers: dict[str, str] = {}
    end = time.monotonic() + _JOINING
    for host in range(state.num_processes):
        while f"{name}/{host}" not in answers:
            if time.monotonic() > end:
                raise UserError(f"host {host} of this run said nothing for {_JOINING} seconds: see its log")
            time.sleep(_OFTEN)
            answers = dict(state.client.key_value_dir_get(name))
        yield answers[f"{name}/{host}"]


def disagreement(said: Sequence[Mapping[str, str]]) -> str:
    """Returns the sentence on what the last host says otherwise than the first, or nothing."""
    first, last = said[0], said[-1]
    names = [name for name in {**first, **last} if first.get(name) != last.get(name)]
    if not names:
        return ""
    shown = (
        f"{name} ({_short(first.get(name))} on host 0, {_short(last.get(name))} on host {len(said) - 1})"
        for name in names[:_SHOWN]
    )
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    what = ", ".join(shown) + more
    return f"the hosts of this run differ in {what}: give each of them the same command and files"


def _short(value: str | None) -> str:
    return "not given" if value is None else value if len(value) <= 60 else f"{value[:59]}…"


def most(value: int) -> int:
    """Returns the largest of the hosts' values."""
    return int(np.max(multihost_utils.process_allgather(np.int32(value)))) if several() else value


def lead(action: Callable[[], T]) -> T | None:
    """Does on the first host what it alone does; returns None on the others.

    Raises:
      UserError: it failed there; every host ends.
    """
    result, problem = None, None
    if leads():
        try:
            result = action()
        except UserError as error:
            problem = error
    failed = bool(agreed(np.int32(problem is not None)))
    if problem is not None:
        raise problem
    if failed:
        raise UserError("the first host could not go on, and says why")
    return result
