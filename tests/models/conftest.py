"""Puts the goldens' case table on the path: it is shared with scripts that run without jax."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "golden"))
