"""Decodes prompts with a verifier, a drafter and a deferral rule.

  python launch/decode.py --config=configs/decode.gin --prompt="Why is the sky blue?"
  python launch/decode.py --config=configs/decode.gin --input=prompts.jsonl --output=answers.jsonl --gin.BATCH_SIZE=8
  python launch/decode.py --config=configs/pairs/custom.gin --gin.VERIFIER="'path-or-uri'" --gin.DRAFTER="'path-or-uri'"

With neither --prompt nor --input it asks at the terminal. Knobs are set as --gin.NAME=VALUE.

A prompt, or a line of the input, that cannot be decoded is told in one sentence and gets a line with "error" in the
output; the others get their answers. The exit code is 0 if all have one, 2 if some have none or nothing could be run,
130 after Ctrl-C, 143 after SIGTERM.
"""

from absl import flags

from cascades import config

flags.DEFINE_multi_string("prompt", None, "A prompt; may be given several times.")
flags.DEFINE_string("input", None, "A JSONL file of prompts.")
flags.DEFINE_string("shard", None, "I/N: every N-th prompt from the I-th on, from 0; so that N machines share a file.")
flags.DEFINE_bool("distributed", False, "This is one of several processes; on a Cloud TPU pod it finds the others.")
flags.DEFINE_string("coordinator", None, "HOST:PORT of the first process, where nothing else tells.")
flags.DEFINE_integer("processes", None, "How many processes there are, where nothing else tells.")
flags.DEFINE_integer("process", None, "Which of them this is, from 0, where nothing else tells.")
flags.DEFINE_string("output", None, "A JSONL file to which a line is appended for every request as it finishes.")

if __name__ == "__main__":
    config.run(
        "cascades.runs.decode.decode",
        base="configs/decode.gin",
        flags=("prompt", "input", "output", "shard", "distributed", "coordinator", "processes", "process"),
    )
