"""Checks that two models have the same tokens."""

from cascades.errors import UserError
from cascades.tokenizers.base import Tokenizer


def check_same_vocabulary(drafter: Tokenizer, verifier: Tokenizer) -> int:
    """The number of ids that both models have, which stand for the same bytes in both.

    One table may be longer: models of one family differ in padding and in tokens that were added later. Logits beyond
    the common ids are cropped.

    Raises:
      UserError: an id differs, or no end-of-turn id of the verifier is among the common ids.
    """
    common = min(drafter.vocab_size, verifier.vocab_size)
    if drafter.contents[:common] != verifier.contents[:common]:
        index = next(i for i in range(common) if drafter.contents[i] != verifier.contents[i])
        raise UserError(
            "the drafter and the verifier must share one vocabulary, but "
            f"token {index} is {drafter.pieces[index]!r} for the drafter and {verifier.pieces[index]!r} for the "
            f"verifier (sizes {drafter.vocab_size} and {verifier.vocab_size}): choose two models of one family."
        )
    if verifier.eos_ids and min(verifier.eos_ids) >= common:
        raise UserError(
            f"the drafter and the verifier share only their first {common} tokens, and the verifier's end-of-text "
            f"token {min(verifier.eos_ids)} is not among them: choose two models of one family."
        )
    return common
