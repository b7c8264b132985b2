"""Times passes, choices, rounds and whole answers, in turn in one process, beside the speed of the machine's memory.

  python launch/bench.py --config=configs/bench.gin --page=bench.html --output=bench.jsonl
  python launch/bench.py --config=configs/pairs/smollm2_135m.gin --gin.DTYPE="'float32'" --gin.TRANSFORMERS=True

With TRANSFORMERS the package of that name decodes the same prompts: pip install -e '.[bench]'.
"""

from absl import flags

from cascades import config

flags.DEFINE_string("input", None, "A JSONL file of prompts, in place of INPUT.")
flags.DEFINE_string("output", None, "A JSONL file to which a line is appended for everything that was timed.")
flags.DEFINE_string("page", None, "An HTML file for the results.")

if __name__ == "__main__":
    config.run("cascades.runs.bench.bench", base="configs/bench.gin", flags=("input", "output", "page"))
