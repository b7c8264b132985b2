"""Trains a model on prompts and answers, from nothing or from a checkpoint.

  python launch/train.py --config=configs/mini/t5_verifier.gin --gin.INPUT="'train.jsonl.gz'"
  python launch/train.py --config=configs/finetune.gin --gin.MODEL="'hf://google/flan-t5-small'" \\
    --gin.INPUT="'train.jsonl'" --gin.LEARNING_RATE=1e-3

The same command goes on where a run was killed.
"""

from cascades import config

if __name__ == "__main__":
    config.run("cascades.runs.train.train", base="configs/train.gin")
