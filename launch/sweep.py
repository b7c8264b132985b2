"""Times deferral rules at several thresholds against the verifier alone: a table, a plot and a page.

  python launch/sweep.py --config=configs/sweep.gin
  python launch/sweep.py --config=configs/sweep.gin --gin.RULES="[@lossless, (@diff, (-0.1, 0.0, 0.2))]"
  python launch/sweep.py --config=configs/pairs/gemma2_2b_9b.gin --gin.SCORE=@rouge_l
  python launch/sweep.py --config=configs/sweep.gin --input=prompts.jsonl --output_dir=results/mine --gin.BATCH_SIZE=8

What is finished is kept: after Ctrl-C the same command goes on, and with further thresholds it adds them. Knobs are set
as --gin.NAME=VALUE.
"""

from absl import flags

from cascades import config

flags.DEFINE_string("input", None, "A JSONL file of prompts, in place of INPUT.")
flags.DEFINE_string("output_dir", None, "The folder of the results, in place of OUTPUT_DIR.")

if __name__ == "__main__":
    config.run("cascades.runs.sweep.sweep", base="configs/sweep.gin", flags=("input", "output_dir"))
