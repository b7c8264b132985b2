"""What a model or a pair is and what would be refused of it, told by headers alone."""

from cascades.inspection.model import Inspected, inspect, to_json
from cascades.inspection.pair import inspect_pair
from cascades.inspection.show import run

__all__ = ["Inspected", "inspect", "inspect_pair", "run", "to_json"]
