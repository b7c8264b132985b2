"""Whether a verifier and a drafter go together, by the checks that loading the pair makes."""

from typing import Any, NamedTuple

from cascades import tokenizers
from cascades.checkpoints.contents import Attempts, Problem
from cascades.checkpoints.load import shared_part
from cascades.decoding.lookup import look_up
from cascades.inspection.model import Inspected, inspect, named, to_json
from cascades.models import DecoderConfig, abstract_params, build, pairing
from cascades.tokenizers import Tokenizer


class InspectedPair(NamedTuple):
    """A verifier and its drafter, of which no weights were read.

    name: the drafter's. drafter: None where it is a look-up alone. order: of its look-up; None where it has none.
    problems: why the two would not go together; what would be refused of one alone is told by that one.
    """

    verifier: Inspected
    name: str
    drafter: Inspected | None
    order: int | None
    problems: tuple[Problem, ...]


def inspect_pair(
    verifier: str, drafter: str, *, preset: str | None = None, drafter_preset: str | None = None
) -> InspectedPair:
    """Opens two models as loading a pair does, up to their weights; a bad input is told in `problems`, never raised.

    Args:
      verifier, drafter: URIs; the drafter may also be `ngram://N` or `ngram://N+URI`.
      preset, drafter_preset: the shapes where the files leave them open.
    """
    attempt = Attempts()
    large = inspect(verifier, preset)
    order, uri = attempt("drafter", lambda: pairing.split_drafter(drafter), (None, None))
    small = None if uri is None else inspect(uri, drafter_preset)
    if large.config is not None and large.contents.parameters is not None:
        model = build(large.config, kernels=False)
        attempt("verifier", lambda: pairing.check_verifier(model, verifier))
        if order is not None:
            attempt("drafter", lambda: look_up(order))
    if small is not None and small.tokenizer is not None and large.tokenizer is not None:
        tables = small.tokenizer, large.tokenizer
        attempt("vocabulary", lambda: tokenizers.check_same_vocabulary(*tables))
    if small is not None:
        _check_models(attempt, large, small)
    return InspectedPair(large, drafter, small, order, tuple(attempt.problems))


def _check_models(attempt: Attempts, verifier: Inspected, drafter: Inspected) -> None:
    """Tries what loading does once both architectures are known."""
    large, small, path = verifier.config, drafter.config, drafter.contents.path
    # Models of sizes that no tensors bear out are not built.
    borne_out = None not in (verifier.contents.parameters, drafter.contents.parameters)
    if large is None or small is None or path is None or not borne_out:
        return
    verifying, drafting, names = build(large, kernels=False), build(small, kernels=False), (verifier.name, drafter.name)
    attempt("starts", lambda: pairing.check_starts(verifying, drafting, names))
    if drafting.feature_width is not None and isinstance(large, DecoderConfig):
        keeping = build(large, kernels=False, features=True)
        attempt("features", lambda: pairing.check_features(keeping, drafting, names))
    if drafter.contents.shared:
        attempt("shared", lambda: shared_part(path, small, abstract_params(large)))


def pair_to_json(pair: InspectedPair) -> dict[str, Any]:
    """Everything that is known, for `json.dumps`."""
    models = {"verifier": to_json(pair.verifier), "drafter": None if pair.drafter is None else to_json(pair.drafter)}
    together = {
        "drafter": pair.name,
        "looks_up": pair.order,
        **(_vocabularies(pair.verifier, pair.drafter) if pair.drafter else {}),
        **_contexts(pair),
        "problems": [problem._asdict() for problem in pair.problems],
    }
    loads = not pair.problems and all(each is None or each["loads"] for each in models.values())
    return {**models, "pair": together, "loads": loads}


def _vocabularies(verifier: Inspected, drafter: Inspected) -> dict[str, Any]:
    large, small = verifier.tokenizer, drafter.tokenizer
    if large is None or small is None:
        return {}
    common = min(large.vocab_size, small.vocab_size)
    differs = next((i for i in range(common) if large.contents[i] != small.contents[i]), None)
    sizes = [config.vocab_size for config in (verifier.config, drafter.config) if config is not None]
    return {
        "shared_vocabulary": min(common, *sizes) if differs is None else differs,
        "first_difference": None
        if differs is None
        else {"id": differs, "verifier": large.pieces[differs], "drafter": small.pieces[differs]},
        "before": {"verifier": _before(large), "drafter": _before(small)},
        "ends_only_verifier": _ends(large, small),
        "ends_only_drafter": _ends(small, large),
    }


def _before(tokenizer: Tokenizer) -> list[dict[str, Any] | None]:
    """The tokens that are put before a text."""
    return [named(tokenizer, token) for token in tokenizer.before or ()]


def _ends(tokenizer: Tokenizer, other: Tokenizer) -> list[dict[str, Any] | None]:
    return [named(tokenizer, token) for token in tokenizer.eos_ids if token not in other.eos_ids]


def _contexts(pair: InspectedPair) -> dict[str, Any]:
    large = pair.verifier.config
    small = large if pair.drafter is None else pair.drafter.config
    return {
        "contexts": {
            "verifier": None if large is None else large.context_length,
            "drafter": None if small is None else small.context_length,
        },
        "reads_features": bool(getattr(small, "reads_features", False)) and pair.drafter is not None,
    }
