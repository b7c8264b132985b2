import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers import ALPHAS, NAMES, RULES, SETTINGS
from reference import Settings

from cascades import rules
from cascades.distributions import Sampling, entropy, total_variation
from cascades.speculation import pair_of

POSITION = ("chow", "chow_log", "diff", "opt", "diff_log", "opt_log", "bild")
TOKEN = ("token_v1", "token_v2", "token_v3", "typical")
PAIRS = 1000


def as_float(x):
    return jnp.asarray(x, jnp.float32)


@functools.cache
def random_pairs(vocab_size=5):
    """1,000 pairs of logits, near and far, with rows of every setting, one-hot (T = 0) and truncated ones included."""
    rng = np.random.default_rng(vocab_size)
    p = (rng.normal(size=(PAIRS, vocab_size)) * rng.choice([0.3, 1, 4], size=(PAIRS, 1))).astype(np.float32)
    noise = rng.normal(size=p.shape) * rng.choice([0, 0.2, 1, 4], size=(PAIRS, 1))
    q = (p + noise).astype(np.float32)
    q[::50] = p[::50, ::-1]
    settings = [SETTINGS[i % len(SETTINGS)] for i in range(PAIRS)]
    sampling = Sampling(
        as_float([s.temperature for s in settings]),
        jnp.asarray([s.top_k for s in settings], jnp.int32),
        as_float([s.top_p for s in settings]),
        as_float([s.min_p for s in settings]),
    )
    theirs = [reference.pair_of(a, b, s) for a, b, s in zip(q, p, settings, strict=True)]
    return pair_of(jnp.asarray(q), jnp.asarray(p), sampling), theirs, settings


def everywhere(alpha):
    return jnp.full((PAIRS,), alpha, jnp.float32)


def grid(name):
    """Thresholds from end to end of a rule's range."""
    low, high = rules.ALPHA_RANGE[RULES[name] if name != "lossy_beta" else rules.lossy]
    low, high = max(low, -2.0), min(high, 2.0)
    return [low, high, *np.linspace(low, high, 7)[1:-1], ALPHAS[name]]


def test_every_rule_is_listed_with_its_range():
    assert set(rules.ALPHA_RANGE) == {getattr(rules, name) for name in rules.__all__}


@pytest.mark.parametrize("name", NAMES)
def test_pi_is_the_reference_and_a_distribution(name):
    pair, theirs, _ = random_pairs()
    plain, beta = (name[:5], 0.8) if name == "lossy_beta" else (name, 1.0)
    for alpha in grid(name):
        ours = RULES[name](pair, everywhere(alpha))
        pi = np.asarray(ours.pi)
        np.testing.assert_allclose(pi.sum(axis=-1), 1, atol=1e-5)
        assert pi.min() >= 0
        assert 0 <= float(jnp.min(ours.defer)) and float(jnp.max(ours.defer)) <= 1 + 1e-6
        expected = np.stack([reference.target(plain, d, float(np.float32(alpha)), beta) for d in theirs])
        # float32 and float64 may fall on either side of a threshold that a position lies on to seven digits.
        off = np.abs(pi - expected).max(axis=-1) > 1e-5
        assert off.mean() <= 0.003, (alpha, off.mean())


@pytest.mark.parametrize("name", NAMES)
def test_accepting_and_correcting_gives_pi(name):
    pair, *_ = random_pairs()
    pi = RULES[name](pair, everywhere(ALPHAS[name])).pi
    rejection = total_variation(pi, pair.q)
    rest = jnp.maximum(pi - pair.q, 0)
    np.testing.assert_allclose(jnp.minimum(pair.q, pi) + rest, pi, atol=1e-6)
    np.testing.assert_allclose(rejection, 1 - jnp.sum(jnp.minimum(pair.q, pi), axis=-1), atol=1e-5)


@pytest.mark.parametrize("name", POSITION)
def test_rejection_rate_of_a_position_rule(name):
    pair, *_ = random_pairs()
    pi, defer = RULES[name](pair, everywhere(ALPHAS[name]))
    assert 0.05 < float(jnp.mean(defer)) < 0.95
    np.testing.assert_allclose(total_variation(pi, pair.q), defer * total_variation(pair.p, pair.q), atol=1e-6)


@pytest.mark.parametrize("name", TOKEN)
def test_deferral_of_a_token_rule_is_the_mass_it_gives_away(name):
    pair, *_ = random_pairs()
    pi, eta = RULES[name](pair, everywhere(ALPHAS[name]))
    assert 0.02 < float(jnp.mean(eta)) < 0.98
    # Every token, acceptable or not, has at least eta p.
    assert bool(jnp.all(pi >= eta[:, None] * pair.p - 1e-6))


@pytest.mark.parametrize(
    ("name", "loss"),
    [("opt", lambda raw: 1 - raw.max(axis=-1)), ("opt_log", lambda raw: -(raw * np.log(raw)).sum(axis=-1))],
)
@pytest.mark.parametrize("alpha", [-0.5, 0.1, 0.5, 1.0, 2.0])
def test_optimal_rule_is_optimal(name, loss, alpha):
    # Loss plus alpha times rejections: no decision on any set of positions, nor any other rule, does better.
    pair, *_ = random_pairs()
    q, p = (np.asarray(x, np.float64) for x in (pair.q_raw, pair.p_raw))
    rejection = np.asarray(total_variation(pair.p, pair.q), np.float64)

    def cost(defer):
        defer = np.asarray(defer, np.float64)
        return np.mean(defer * (loss(p) + alpha * rejection) + (1 - defer) * loss(q))

    best = cost(RULES[name](pair, everywhere(alpha)).defer)
    rng = np.random.default_rng(0)
    others = [rng.random(PAIRS) < share for share in np.linspace(0, 1, 50)]
    others += [RULES[rule](pair, everywhere(a)).defer for rule in POSITION for a in grid(rule)]
    costs = np.asarray([cost(defer) for defer in others])
    assert best <= costs.min() + 1e-6
    assert best < np.median(costs) - 1e-3
    # By enumeration: both choices at every position.
    np.testing.assert_allclose(best, np.mean(np.minimum(loss(p) + alpha * rejection, loss(q))), atol=1e-6)


def greedy_pairs():
    rng = np.random.default_rng(9)
    p = rng.normal(size=(PAIRS, 5)).astype(np.float32)
    q = (p + rng.normal(size=p.shape)).astype(np.float32)
    zero = jnp.zeros((PAIRS,), jnp.float32)
    pair = pair_of(jnp.asarray(q), jnp.asarray(p), Sampling(zero, zero.astype(jnp.int32), zero + 1, zero))
    return pair, q.argmax(-1), p.argmax(-1)


@pytest.mark.parametrize("name", POSITION)
def test_greedy_position_rules_emit_either_best_token(name):
    pair, a, b = greedy_pairs()
    pi, defer = RULES[name](pair, everywhere(ALPHAS[name]))
    emitted = np.asarray(pi).argmax(-1)
    assert np.asarray(pi).max() == 1 and np.count_nonzero(pi) == PAIRS
    np.testing.assert_array_equal(emitted, np.where(np.asarray(defer) == 1, b, a))
    assert (emitted != a).any() and (emitted != b).any()


@pytest.mark.parametrize("alpha", [-0.3, 0.0, 0.05, 0.3])
def test_greedy_opt_emits_what_diff_emits(alpha):
    pair, a, b = greedy_pairs()
    opt, diff = (RULES[name](pair, everywhere(alpha)).pi for name in ("opt", "diff"))
    np.testing.assert_array_equal(opt, diff)
    twins = [RULES[name](pair, everywhere(alpha)).pi for name in ("opt_log", "diff_log")]
    np.testing.assert_array_equal(*twins)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.3, 0.6, 0.9])
def test_greedy_token_rules_are_lenience(alpha):
    pair, a, b = greedy_pairs()
    p = np.asarray(pair.p_raw)
    row = np.arange(PAIRS)
    # Leviathan et al. (2023), greedy lenience: the draft stands if p(x) >= (1 - alpha) max p.
    lenient = p[row, a] >= np.float32(1 - np.float32(alpha)) * p.max(-1)
    emitted = np.asarray(rules.token_v3(pair, everywhere(alpha)).pi).argmax(-1)
    np.testing.assert_array_equal(emitted, np.where(lenient, a, b))
    near = p[row, a] >= p.max(-1) - np.float32(alpha)
    emitted = np.asarray(rules.token_v2(pair, everywhere(alpha)).pi).argmax(-1)
    np.testing.assert_array_equal(emitted, np.where(near, a, b))


LOSSLESS_END = {
    "chow": 0, "chow_log": 0, "diff": -1, "opt": -math.inf, "diff_log": -math.log(5) - 0.01, "opt_log": -math.inf,
    "token_v1": -1, "token_v2": -1, "lossy": 0, "bild": 0, "cactus": 0,
}  # fmt: skip
DRAFTER_END = {
    "chow": 1, "chow_log": math.inf, "diff": 1, "opt": math.inf, "diff_log": math.log(5) + 0.01, "opt_log": math.inf,
    "token_v1": 1, "token_v2": 1, "token_v3": 1, "lossy": 1, "bild": math.inf, "typical": 1,
}  # fmt: skip


def test_ends_cover_every_rule():
    assert {*LOSSLESS_END, "lossless", "token_v3", "typical"} == set(rules.__all__)
    assert {*DRAFTER_END, "lossless", "cactus"} == set(rules.__all__)


@pytest.mark.parametrize("name", LOSSLESS_END)
def test_lossless_end(name):
    pair, *_ = random_pairs()
    pi = RULES[name](pair, everywhere(LOSSLESS_END[name])).pi
    np.testing.assert_allclose(pi, pair.p, atol=1e-6)


@pytest.mark.parametrize("name", DRAFTER_END)
def test_drafter_end(name):
    pair, *_ = random_pairs()
    pi, defer = RULES[name](pair, everywhere(DRAFTER_END[name]))
    np.testing.assert_allclose(pi, pair.q, atol=1e-6)
    # Where the scaled distributions are equal, `opt` may defer: nothing depends on it.
    np.testing.assert_allclose(defer * total_variation(pair.p, pair.q), 0, atol=1e-6)


def test_token_v3_at_zero_is_lossless_only_when_greedy():
    pair, _, settings = random_pairs()
    distance = np.asarray(total_variation(rules.token_v3(pair, everywhere(0.0)).pi, pair.p))
    greedy = np.asarray([s.temperature == 0 for s in settings])
    assert distance[greedy].max() == 0
    assert distance[~greedy].max() > 0.4


def test_rules_look_at_raw_thresholds_when_greedy():
    # The same pair at T = 0: chow defers by the raw max q, which is far below the one-hot's 1.
    pair, *_ = greedy_pairs()
    defer = np.asarray(rules.chow(pair, everywhere(0.5)).defer)
    np.testing.assert_array_equal(defer == 1, np.asarray(pair.q_raw).max(-1) < 0.5)
    assert 0.2 < defer.mean() < 0.8


def test_ties_keep_the_drafter():
    q = as_float([[0.5, 0.25, 0.25]])
    p = as_float([[0.25, 0.5, 0.25]])
    pair = rules.Pair(q, p, q, p)
    half = as_float([math.log(2)])
    for rule, alpha in (
        (rules.chow, 0.5),
        (rules.diff, 0.0),
        (rules.opt, 0.0),
        (rules.diff_log, 0.0),
        (rules.opt_log, 0.0),
        (rules.token_v1, 0.25),
        (rules.token_v2, 0.25),
        (rules.token_v3, 0.5),
        (rules.lossy, 0.5),
    ):
        pi, defer = rule(pair, as_float([alpha]))
        np.testing.assert_array_equal(pi, q, err_msg=rule.__name__)
        assert float(defer[0]) == 0
        beyond = as_float([alpha - 1e-3])
        assert float(rule(pair, beyond).defer[0]) > 0, rule.__name__
    same = rules.Pair(p, q, p, q)  # -log p(argmax q) = log 4
    edge = -jnp.log(as_float([0.25]))
    assert float(rules.bild(same, edge).defer[0]) == 0 and float(rules.bild(same, half).defer[0]) == 1
    assert float(rules.chow_log(pair, entropy(q)).defer[0]) == 0


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("beta", [1.0, 0.8, 1.5])
def test_lossy_accepts_and_corrects_as_published(alpha, beta):
    pair, theirs, _ = random_pairs()
    pi = np.asarray(rules.lossy(pair, everywhere(alpha), beta).pi)
    for i, d in enumerate(theirs[:300]):
        accept = np.minimum(1, d.p / np.maximum((1 - alpha) * d.q, 1e-300))
        rest = np.maximum(0, d.p / beta - d.q)
        rest = rest / rest.sum() if rest.sum() > 0 else d.p
        kept = d.q * accept
        np.testing.assert_allclose(pi[i], kept + (1 - kept.sum()) * rest, atol=2e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.01, 0.3, 2.0, math.inf])
def test_cactus_accepts_and_corrects_as_published(alpha):
    pair, theirs, settings = random_pairs()
    pi = np.asarray(rules.cactus(pair, everywhere(alpha)).pi)
    for i, d in enumerate(theirs[:300]):
        np.testing.assert_allclose(pi[i], reference.cactus(d, alpha), atol=2e-5)
        if settings[i].temperature == 0:
            np.testing.assert_array_equal(pi[i], np.asarray(pair.p)[i])


@pytest.mark.parametrize("alpha", [0.01, 0.3, 2.0])
def test_cactus_stays_near_the_verifier(alpha):
    """As far as it is allowed: the law that a draft is judged against diverges from p by about alpha, and pi is a
    mixture of such laws and of drafts that were kept. Tokens that both models find unlikely stay so."""
    rng = np.random.default_rng(0)
    p, q = (as_float(rng.dirichlet(np.full(5000, 0.01), size=20)) for _ in range(2))
    pi = np.asarray(rules.cactus(rules.Pair(q, p, q, p), jnp.full((20,), alpha, jnp.float32)).pi)
    np.testing.assert_allclose(pi.sum(-1), 1, atol=1e-5)
    unlikely = (np.asarray(p) < 1e-6) & (np.asarray(q) < 1e-6)
    assert (pi * unlikely).sum(-1).max() < 2e-3


@pytest.mark.parametrize(("eps", "delta"), [(0.09, 0.3), (0.3, None), (0.02, 0.5), (1.0, None)])
def test_typical_keeps_what_medusa_keeps(eps, delta):
    pair, theirs, _ = random_pairs()
    pi, defer = (np.asarray(x) for x in rules.typical(pair, everywhere(1 - eps), delta))
    kept = 0
    for i, d in enumerate(theirs[:300]):
        h = reference.entropy(d.p_raw)
        stands = d.p_raw > min(eps, (eps**0.5 if delta is None else delta) * np.exp(-h))
        np.testing.assert_allclose(pi[i], d.q * stands + d.q[~stands].sum() * d.p, atol=2e-5)
        kept += stands.sum()
    assert 300 < kept < 1500
    more = np.asarray(rules.typical(pair, everywhere(min(1 - eps + 0.3, 1.0)), delta).defer)
    assert (more <= defer + 1e-6).all()  # lenience grows with alpha


@pytest.mark.parametrize("alpha", [0.2, 0.5])
def test_lossy_closed_form(alpha):
    # With the beta that makes max(min(q, p / (1 - alpha)), p / beta) a distribution, that is pi.
    settings = Settings(1.0)
    rng = np.random.default_rng(4)
    for _ in range(20):
        d = reference.pair_of(rng.normal(size=5), rng.normal(size=5), settings)

        def closed(beta, d=d):
            return np.maximum(np.minimum(d.q, d.p / (1 - alpha)), d.p / beta)

        low, high = 1 - alpha, 50.0
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if closed(middle).sum() > 1 else (low, middle)
        pair = rules.Pair(*(as_float(x)[None] for x in d))
        pi = rules.lossy(pair, as_float([alpha]), beta=low).pi[0]
        np.testing.assert_allclose(pi, closed(low), atol=1e-4)


def test_infinite_thresholds_on_equal_models_stay_finite():
    q = as_float([[0.5, 0.5, 0.0]])
    pair = rules.Pair(q, q, q, q)
    for name in ("opt", "opt_log"):
        for alpha in (-math.inf, math.inf):
            np.testing.assert_array_equal(RULES[name](pair, as_float([alpha])).pi, q)
