"""The method in float64 numpy, written from its formulas and not from the package: what the tests compare with."""

from typing import NamedTuple

import numpy as np


class Pair(NamedTuple):
    """The two distributions at a position, raw and as sampled, each `[v]`."""

    q_raw: np.ndarray
    p_raw: np.ndarray
    q: np.ndarray
    p: np.ndarray


class Settings(NamedTuple):
    """How a row is sampled."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def softmax(logits):
    logits = np.asarray(logits, np.float64)
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def sampled(logits, settings: Settings):
    """Temperature, top-k, top-p of what is left, min-p; ties with the last token kept stay."""
    logits = np.asarray(logits, np.float64)
    if settings.temperature == 0:
        return np.eye(len(logits))[int(np.argmax(logits))]
    probs = softmax(logits / settings.temperature)
    if settings.top_k:
        smallest = np.sort(probs)[::-1][min(settings.top_k, len(probs)) - 1]
        probs = np.where(probs >= smallest, probs, 0)
    if settings.top_p < 1:
        probs = probs / probs.sum()
        ordered = np.sort(probs)[::-1]
        smallest = ordered[int(np.argmax(np.cumsum(ordered) >= settings.top_p))]
        probs = np.where(probs >= smallest, probs, 0)
    probs = np.where(probs >= settings.min_p * probs.max(), probs, 0)
    return probs / probs.sum()


def pair_of(q_logits, p_logits, settings: Settings) -> Pair:
    return Pair(softmax(q_logits), softmax(p_logits), sampled(q_logits, settings), sampled(p_logits, settings))


def entropy(probs):
    probs = probs[probs > 0]
    return -np.sum(probs * np.log(probs))


def distance(a, b):
    """D_TV."""
    return 0.5 * np.abs(a - b).sum()


def defers(rule: str, d: Pair, alpha: float) -> bool | None:
    """Whether a position rule hands the position to the verifier; None for a rule that looks at tokens."""
    top_q, top_p, gap = d.q_raw.max(), d.p_raw.max(), distance(d.p, d.q)
    h_q, h_p = entropy(d.q_raw), entropy(d.p_raw)
    table = {
        "lossless": True,
        "chow": top_q < 1 - alpha,
        "chow_log": h_q > alpha,
        "diff": top_q < top_p - alpha,
        "opt": top_q < top_p - alpha * gap,
        "diff_log": h_q > h_p + alpha,
        "opt_log": h_q > h_p + alpha * gap,
        "bild": -np.log(d.p_raw[np.argmax(d.q_raw)]) > alpha,
    }
    return table.get(rule)


def target(rule: str, d: Pair, alpha: float, beta: float = 1.0):
    """The distribution pi that the emitted token must follow, `[v]`."""
    defer = defers(rule, d, alpha)
    if defer is not None:
        return d.p if defer else d.q
    if rule == "cactus":
        return cactus(d, alpha)
    if rule == "lossy":
        accept = np.ones_like(d.q)
        for v in range(len(d.q)):
            if (1 - alpha) * d.q[v] > d.p[v]:
                accept[v] = d.p[v] / ((1 - alpha) * d.q[v])
        rest = np.maximum(0, d.p / beta - d.q)
        rest = rest / rest.sum() if rest.sum() > 0 else d.p
        return d.q * accept + (1 - np.sum(d.q * accept)) * rest
    kept = {
        "token_v1": d.q_raw >= d.p_raw.max() - alpha,
        "token_v2": d.p_raw >= d.p_raw.max() - alpha,
        "token_v3": d.p_raw >= (1 - alpha) * d.p_raw.max(),
        "typical": d.p_raw > min(1 - alpha, np.sqrt(1 - alpha) * np.exp(-entropy(d.p_raw))),
    }[rule]
    return d.q * kept + d.q[~kept].sum() * d.p


def cactus(d: Pair, alpha: float):
    """The law of Cactus, draft by draft, as its authors' sampler has it."""
    pi = np.zeros_like(d.p)
    for n, q in enumerate(d.q):
        inside = d.p[n] * (1 - d.p[n])
        h = min(1.0, d.p[n] + np.sqrt(2 * alpha * inside)) if inside > 0 else d.p[n]
        if h >= q:
            pi[n] += q
            continue
        judged = d.p * (1 - h) / (1 - d.p[n])
        judged[n] = h
        rest = np.maximum(0, judged - d.q)
        pi[n] += h
        pi += (q - h) * rest / rest.sum()
    return pi


def block_law(accepted, corrected, bonus, vocab_size: int, prompt: tuple[int, ...], length: int, k: int):
    """The law of the next `length` tokens when every round drafts `k`, by enumeration over all prefixes.

    Args:
      accepted, corrected, bonus: `[v * v, v]`, for each context of two tokens the probability that a token is drafted
        and kept; that it replaces a rejected draft; that it follows a block that was kept whole.

    Returns:
      Probabilities, one axis a token.
    """
    law = np.zeros((vocab_size,) * length)
    # `state[(prefix, left)]`: probability of having emitted `prefix` with `left` drafts of the round still to judge.
    state = {((0, *prompt), k): 1.0}
    for _ in range(length):
        following = {}
        for (prefix, left), mass in state.items():
            context = prefix[-2] * vocab_size + prefix[-1]
            for token in range(vocab_size):
                if left:
                    moves = ((accepted[context, token], left - 1), (corrected[context, token], k))
                else:
                    moves = ((bonus[context, token], k),)
                for probability, rest in moves:
                    if probability * mass > 0:
                        key = ((*prefix, token), rest)
                        following[key] = following.get(key, 0.0) + probability * mass
        state = following
    for (prefix, _), mass in state.items():
        law[prefix[-length:]] += mass
    return law


def tables(rule: str, q_table, p_table, settings: Settings, alpha: float, beta: float = 1.0):
    """For each context of a pair of table models: pi, q~ and p~, each `[v * v, v]`."""
    pairs = [pair_of(q, p, settings) for q, p in zip(q_table, p_table, strict=True)]
    pi = np.stack([target(rule, d, alpha, beta) for d in pairs])
    return pi, np.stack([d.q for d in pairs]), np.stack([d.p for d in pairs])


def autoregressive_law(pi, vocab_size: int, prompt: tuple[int, ...], length: int):
    """The law of the next `length` tokens when each follows `pi` given the two before it."""
    return block_law(pi, pi, pi, vocab_size, prompt, length, 0)


def strict_law(pi, p, vocab_size: int, prompt: tuple[int, ...], length: int, strict: int):
    """The law of the next `length` tokens of which the first `strict` follow `p`, and the others `pi`."""
    law = np.zeros((vocab_size,) * length)
    for text in np.ndindex(law.shape):
        written, mass = (0, *prompt), 1.0
        for place, token in enumerate(text):
            mass *= (p if place < strict else pi)[written[-2] * vocab_size + written[-1], token]
            written = (*written, token)
        law[text] = mass
    return law


def speculative_law(pi, q, bonus, vocab_size: int, prompt: tuple[int, ...], length: int, k: int):
    """The law of the next `length` tokens of rounds of `k` drafts; `bonus` is the law behind a block kept whole."""
    kept = np.minimum(q, pi)
    return block_law(kept, np.maximum(pi - q, 0), bonus, vocab_size, prompt, length, k)
