"""Tells what a pair takes on a TPU slice, by the TPU compiler itself. No TPU is needed; nothing is measured.

  python launch/plan.py --config=configs/plan.gin --topology=v5e:2x4
  python launch/plan.py --config=configs/plan.gin --topology=v5e:2x4,v5p:2x2x1,v6e:2x4 --gin.VERIFIER="'gemma2_27b'"
  python launch/plan.py --config=configs/tpu/gemma2_2b_9b.gin --topology=v6e:2x4
  python launch/plan.py --config=configs/plan.gin --topology=all --output=plan.jsonl

Needs libtpu: pip install -e '.[tpu]'.
"""

import os

# For libtpu, before jax is imported: compile for slices that are not here, and ask nobody where this machine is.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")

from absl import flags

from cascades import config

flags.DEFINE_string("topology", None, "Slices to compile for, in place of TOPOLOGY, as in v5e:2x4,v6e:2x4; or all.")
flags.DEFINE_string("output", None, "A JSONL file that gets a line for each slice.")

if __name__ == "__main__":
    config.run("cascades.runs.plan.plan", base="configs/plan.gin", flags=("topology", "output"))
