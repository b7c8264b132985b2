"""Writes lookahead.json: traces of `verifier_guided`. Those that are here were recorded when it was one closure.

python tests/golden/make_lookahead_goldens.py
"""

import json
import pathlib

import lookahead_cases

from cascades import lookahead


def main():
    result = {
        name: lookahead_cases.trace(lookahead.verifier_guided(**arguments), costs)
        for name, (arguments, costs) in lookahead_cases.CASES.items()
    }
    target = pathlib.Path(__file__).parent / "lookahead.json"
    target.write_text(json.dumps(result, separators=(",", ":")).replace('},"', '},\n"') + "\n")
    print(len(result), "traces")


if __name__ == "__main__":
    main()
