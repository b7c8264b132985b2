"""Trains a model from nothing on prompts and answers.

  python launch/train.py --config=configs/mini/t5_verifier.gin --gin.INPUT="'train.jsonl.gz'"

The same command goes on where a run was killed.
"""

from cascades import config

if __name__ == "__main__":
    config.run("cascades.runs.train.train", base="configs/train.gin")
