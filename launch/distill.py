"""Makes a drafter for a verifier, from prompts and the answers that the verifier gave.

  python launch/decode.py --config=configs/decode.gin --gin.METHOD="'verifier_only'" --input=prompts.jsonl \\
    --output=answers.jsonl
  python launch/distill.py --config=configs/distill.gin --gin.INPUT="'answers.jsonl'" --gin.KIND="@eagle()"
  python launch/decode.py --config=configs/decode.gin --gin.DRAFTER="'results/distill/drafter'" --prompt="Hello!"

The same command goes on where a run was killed.
"""

from cascades import config

if __name__ == "__main__":
    config.run("cascades.runs.distill.distill", base="configs/distill.gin")
