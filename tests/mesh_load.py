"""Writes a random checkpoint of 2 GB, and loads it as one of four processes; run by tests/test_hosts.py.

python tests/mesh_load.py write FOLDER
python tests/mesh_load.py load FOLDER localhost:1234 PROCESS
"""

import dataclasses
import json
import pathlib
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from cascades import checkpoints, hosts, models
from cascades.checkpoints import names
from cascades.sharding import layout, mesh_of

CONFIG = dataclasses.replace(models.preset("gemma2_2b"), num_layers=5, local_layers=(True, False, True, False, True))


def write(folder: pathlib.Path) -> None:
    """In Hugging Face's layout: Gemma's own is the one with the largest vocabulary."""
    some = np.random.default_rng(0).normal(size=1 << 20).astype(jnp.bfloat16)
    tensors = {t.name: np.resize(some, t.shape) for t in names.huggingface(CONFIG, ()).values()}
    save_file(tensors, folder / "model.safetensors")
    text = {
        "model_type": "gemma2",
        "architectures": ["Gemma2ForCausalLM"],
        "vocab_size": CONFIG.vocab_size,
        "hidden_size": CONFIG.d_model,
        "intermediate_size": CONFIG.d_ff,
        "num_hidden_layers": CONFIG.num_layers,
        "num_attention_heads": CONFIG.num_heads,
        "num_key_value_heads": CONFIG.num_kv_heads,
        "head_dim": CONFIG.head_dim,
        "query_pre_attn_scalar": CONFIG.head_dim,
        "sliding_window": 4096,
        "max_position_embeddings": 8192,
    }
    (folder / "config.json").write_text(json.dumps(text))


def private() -> int:
    """Bytes of this process's own memory; pages of the file itself, which the system may drop, do not count."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def load(folder: str, coordinator: str, process: int) -> None:
    hosts.join(coordinator, 4, process)
    place = layout(mesh_of(jax.devices(), 1, 4), "tensor")
    before, peak, done = private(), [0], threading.Event()

    def watch():
        while not done.is_set():
            peak[0] = max(peak[0], private())
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    shardings = lambda like: place.shardings(models.logical_axes(like), like)  # noqa: E731
    params = checkpoints.load(folder, dtype=jnp.bfloat16, shardings=shardings, progress=False).params
    jax.block_until_ready(params)
    done.set()
    watcher.join()
    leaves = jax.tree.leaves(params)
    held = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards)
    total = sum(leaf.nbytes for leaf in leaves)
    print(json.dumps({"total": total, "held": held, "peak": peak[0] - before}))


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(pathlib.Path(sys.argv[2]))
    else:
        load(sys.argv[2], sys.argv[3], int(sys.argv[4]))
