"""Writes special_tokens.json: what transformers makes of the folders of special_cases.py.

Needs transformers 5 in an environment of its own (the package needs none):

    python tests/golden/make_special_goldens.py
"""

import json
import pathlib
import tempfile

import special_cases
import transformers


def golden(directory):
    reference = transformers.AutoTokenizer.from_pretrained(str(directory))
    return {
        "size": len(reference),
        "bos": reference.bos_token,
        "eos": reference.eos_token,
        "special": sorted(index for index, token in reference.added_tokens_decoder.items() if token.special),
        "ids": [reference.encode(text) for text in special_cases.TEXTS],
        "bare": [reference.encode(text, add_special_tokens=False) for text in special_cases.TEXTS],
        "plain": [
            reference.encode(text, add_special_tokens=False, split_special_tokens=True) for text in special_cases.TEXTS
        ],
    }


def main():
    result = {}
    for name in special_cases.CASES:
        with tempfile.TemporaryDirectory() as folder:
            result[name] = golden(special_cases.write(pathlib.Path(folder) / name, name))
    target = pathlib.Path(__file__).parent / "special_tokens.json"
    target.write_text(json.dumps(result, separators=(",", ":")).replace('},"', '},\n"') + "\n")
    print(len(result), "folders")


if __name__ == "__main__":
    main()
