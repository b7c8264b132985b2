"""Finds the fastest rule, threshold and draft length that keep a stated quality, and proves it on prompts of their own.

  python launch/tune.py --config=configs/tune.gin --floor=0.98 --input=prompts.jsonl --gin.SCORE=@my_scores.exact
  python launch/tune.py --config=configs/pairs/gemma2_2b_9b.gin --floor=0.98 --gin.TASKS="[@gsm8k()]"

It writes a file of the pair with the setting, which every launcher takes as its --config, or says that nothing holds
the floor, or that the prompts are too few to tell. After Ctrl-C the same command goes on.
"""

from absl import flags

from cascades import config

flags.DEFINE_string("input", None, "A JSONL file of prompts, in place of INPUT.")
flags.DEFINE_string("output_dir", None, "The folder of the results, in place of OUTPUT_DIR.")
flags.DEFINE_float("floor", None, "Share of the verifier's score that is kept at least, in place of FLOOR.")

if __name__ == "__main__":
    config.run("cascades.runs.tune.tune", base="configs/tune.gin", flags=("input", "output_dir", "floor"))
