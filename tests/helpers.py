"""Runs of the real loop on table models with every rule and every controller as rows of one batch, and statistics."""

import functools
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import reference
from reference import Settings
from scipy import stats

from cascades import lookahead, rules
from cascades.decoding import FREE, Plan, Programs, Request, State, compile_plan
from cascades.distributions import Purpose, Sampling, gumbel, stream
from cascades.testing import table_model

RULES = {name: getattr(rules, name) for name in rules.__all__} | {
    "lossy_beta": functools.partial(rules.lossy, beta=0.8)
}
NAMES = tuple(RULES)

# A threshold for each rule at which, on random pairs, some positions are deferred and some are not.
ALPHAS = {
    "lossless": 0.0,
    "chow": 0.5,
    "chow_log": 0.8,
    "diff": 0.05,
    "opt": 0.3,
    "diff_log": 0.0,
    "opt_log": 0.1,
    "token_v1": 0.3,
    "token_v2": 0.3,
    "token_v3": 0.5,
    "lossy": 0.4,
    "bild": 1.0,
    "typical": 0.9,
    "cactus": 0.1,
    "lossy_beta": 0.4,
}

SETTINGS = (
    Settings(0.0),
    Settings(0.5),
    Settings(1.0),
    Settings(1.0, top_p=0.7),
    Settings(0.5, top_k=2),
    Settings(1.0, min_p=0.3),
    Settings(0.8, top_k=3, top_p=0.9, min_p=0.1),
)

SLOTS = 43  # of most batches: the longest row, and no more
_STRIDE = 64.0


class Case(NamedTuple):
    """What one row decodes. alpha None: the rule's own of `ALPHAS`."""

    rule: str = "lossless"
    settings: Settings = Settings()
    prompt: tuple[int, ...] = (1,)
    new: int = 8
    alpha: float | None = None
    seed: int = 0
    strict: int = 0

    @property
    def threshold(self) -> float:
        return ALPHAS[self.rule] if self.alpha is None else self.alpha

    @property
    def code(self) -> np.float32:
        """What `any_rule` takes as alpha: the rule's number and its threshold."""
        return np.float32(_STRIDE * NAMES.index(self.rule) + self.threshold)

    @property
    def alpha_left(self) -> np.float32:
        """The threshold that float32 leaves of the code."""
        return np.float32(self.code - np.float32(_STRIDE * NAMES.index(self.rule)))

    def tables(self, q_table, p_table):
        """pi, q~, p~ of each context, from the reference."""
        alpha = float(self.alpha_left)
        name, beta = (self.rule[:5], 0.8) if self.rule == "lossy_beta" else (self.rule, 1.0)
        return reference.tables(name, q_table, p_table, self.settings, alpha, beta)


def any_rule(pair, alpha):
    """Every rule at once: the row's number chooses, so that one program serves all of them."""
    index = jnp.round(alpha / _STRIDE)
    alpha = alpha - _STRIDE * index
    result = rules.Target(jnp.zeros_like(pair.p), jnp.zeros_like(alpha))
    for number, rule in enumerate(RULES.values()):
        pi, defer = rule(pair, alpha)
        mine = index == number
        result = rules.Target(jnp.where(mine[..., None], pi, result.pi), jnp.where(mine, defer, result.defer))
    return result


EVERY_RULE = tuple(RULES.values())  # of a plan in which they are compiled side by side


def idler(idle: int = 20, k: int = 3) -> lookahead.DraftLength:
    """Drafts nothing for `idle` rounds, then `k` tokens, and so on: the drafter's cache falls far behind."""
    return lookahead.DraftLength(
        init=lambda batch, costs: jnp.zeros((batch,), jnp.int32),
        propose=lambda state, matched, peers: (
            state,
            jnp.where(state % (idle + 1) == idle, k, 0),
            jnp.minimum(matched, k),
        ),
        step=lambda state, drafted: (state, drafted.drafting | True, drafted.drafting | True),
        update=lambda state, verdict: state + 1,
    )


def gossip(k: int = 3) -> lookahead.DraftLength:
    """Drafts on while the drafter draws its favourite; then idles a round or not by how long the last draft was.

    The length of a draft tells of tokens behind the rejection, which nobody verified. To let the next round depend on
    it must not disturb the law of the output.
    """

    return lookahead.DraftLength(
        init=lambda batch, costs: jnp.full((batch,), 2, jnp.int32),
        propose=lambda state, matched, peers: (state, jnp.where(state == 2, k, 0), 0 * matched),
        step=lambda state, drafted: (state, drafted.drafting | True, drafted.drafting | True),
        drawn=lambda state, drafted, own: (state, own >= drafted.top),
        update=lambda state, verdict: jnp.where(verdict.drafted > 0, verdict.drafted, 2),
    )


CONTROLLERS = (
    lookahead.fixed(2),
    lookahead.heuristic(2),
    lookahead.drafter_confidence(0.5),
    lookahead.bild_fallback(0.5),
    lookahead.verifier_guided(patience=2),
    idler(2),
    gossip(),
    idler(20),
)
GOSSIP = 6  # its place


def any_controller(controllers=CONTROLLERS) -> lookahead.DraftLength:
    """Every controller at once: row `b` is led by number `b % len(controllers)`."""

    def chosen(options):
        row = jnp.arange(options[0].shape[0], dtype=jnp.int32) % len(controllers)
        return jnp.select([row == i for i in range(len(controllers))], options, options[0])

    def propose(states, matched, peers):
        triples = [c.propose(s, matched, peers) for c, s in zip(controllers, states, strict=True)]
        drafted, found = ([jnp.asarray(t[i], jnp.int32) for t in triples] for i in (1, 2))
        return tuple(t[0] for t in triples), chosen(drafted), chosen(found)

    def step(states, drafted):
        triples = [c.step(s, drafted) for c, s in zip(controllers, states, strict=True)]
        return tuple(t[0] for t in triples), chosen([t[1] for t in triples]), chosen([t[2] for t in triples])

    def drawn(states, drafted, own):
        pairs = [c.drawn(s, drafted, own) for c, s in zip(controllers, states, strict=True)]
        return tuple(s for s, _ in pairs), chosen([more for _, more in pairs])

    return lookahead.DraftLength(
        init=lambda batch, costs: tuple(c.init(batch, costs) for c in controllers),
        propose=propose,
        step=step,
        drawn=drawn,
        update=lambda states, verdict: tuple(c.update(s, verdict) for c, s in zip(controllers, states, strict=True)),
    )


class Lab(NamedTuple):
    """A pair of table models and the programs of one plan."""

    programs: Programs
    verifier: dict
    drafter: dict

    @property
    def p_table(self):
        return np.asarray(self.verifier["table"])

    @property
    def q_table(self):
        return np.asarray(self.drafter["table"])


EOS = 5


@functools.cache
def programs(vocab_size, k_max, coupling, bonus, alone, rules=(any_rule,), together=False) -> Programs:
    model = table_model(vocab_size)
    return compile_plan(
        Plan(
            verifier=model,
            drafter=None if alone else model,
            rules=rules,
            lookahead=any_controller(),
            k_max=k_max,
            vocab_size=vocab_size,
            eos=(EOS,),
            coupling=coupling,
            bonus=bonus,
            together=together,
        )
    )


@functools.cache
def lab(
    coupling="maximal",
    bonus="target",
    vocab_size: int = 6,
    k_max: int = 4,
    ending=False,
    alone=False,
    rules=(any_rule,),
    together=False,
) -> Lab:
    """Returns a pair of which the drafter is a blur of the verifier, and its programs.

    Token 5 ends a sequence; its probability is next to nothing but where `ending`, so that one program serves both.
    rules: of the plan; requests for `EVERY_RULE` name their own, see `request`. together: see `Plan`.
    """
    model = table_model(vocab_size, scale=1.5)
    first, second = jax.random.split(jax.random.key(vocab_size))
    verifier, noise = model.init(first), model.init(second)
    drafter = {"table": (verifier["table"] + noise["table"]) / 2}
    if not ending:
        verifier, drafter = ({"table": x["table"].at[:, EOS:].set(-30.0)} for x in (verifier, drafter))
    return Lab(programs(vocab_size, k_max, coupling, bonus, alone, rules, together), verifier, drafter)


def request(cases, keys=None, rules=(any_rule,)) -> Request:
    """Returns the batch whose rows are `cases`; each row's key comes from its seed. rules: of the plan."""
    coded = rules == (any_rule,)
    width = max(len(case.prompt) for case in cases)
    if keys is None:
        keys = jnp.stack([jax.random.key(case.seed) for case in cases])

    def column(values, dtype):
        return jnp.asarray(np.asarray(values, dtype))

    return Request(
        tokens=column([case.prompt + (0,) * (width - len(case.prompt)) for case in cases], np.int32),
        length=column([len(case.prompt) for case in cases], np.int32),
        limit=column([len(case.prompt) + case.new for case in cases], np.int32),
        key=keys,
        sampling=Sampling(
            column([case.settings.temperature for case in cases], np.float32),
            column([case.settings.top_k for case in cases], np.int32),
            column([case.settings.top_p for case in cases], np.float32),
            column([case.settings.min_p for case in cases], np.float32),
        ),
        rule=column([0 if coded else rules.index(RULES[case.rule]) for case in cases], np.int32),
        alpha=column([case.code if coded else case.alpha_left for case in cases], np.float32),
        strict=column([len(case.prompt) + case.strict if case.strict else 0 for case in cases], np.int32),
        ignore_eos=jnp.zeros((len(cases),), bool),
    )


def begin(lab: Lab, batch: Request, slots: int = SLOTS, costs: lookahead.Costs | None = None) -> State:
    """Prefills a batch."""
    costs = lookahead.given_costs(lab.programs.plan.k_max, 0.2) if costs is None else costs
    initial = lab.programs.plan.lookahead.init(batch.length.shape[0], costs)
    return lab.programs.start(lab.verifier, lab.drafter, batch, initial, slots)


MANY = 40_000  # rows; to run fewer takes less time than to optimize their program


@functools.cache
def optimized(run):
    """A program for thousands of rows, which runs for longer than it compiles; as users compile it where all are."""
    if "xla_backend_optimization_level=0" not in os.environ.get("XLA_FLAGS", ""):
        return run
    return jax.jit(run, donate_argnums=2, compiler_options={"xla_backend_optimization_level": 1})


def decode(
    lab: Lab, batch: Request, slots: int = SLOTS, forced: int = FREE, rounds: int = 1 << 20, costs=None
) -> State:
    """Runs a batch to its end."""
    state = begin(lab, batch, slots, costs)
    stop = jnp.zeros(batch.length.shape, bool)
    run = lab.programs.run if stop.size < MANY else optimized(lab.programs.run)
    return run(lab.verifier, lab.drafter, state, stop, jnp.int32(rounds), jnp.int32(forced))


def texts(state: State) -> list[tuple[int, ...]]:
    """Returns each row's tokens, prompt included."""
    tokens, length = np.asarray(state.tokens), np.asarray(state.length)
    return [tuple(int(t) for t in row[:n]) for row, n in zip(tokens, length, strict=True)]


def come_and_go(lab: Lab, cases, rows: int, seed: int, slots: int = SLOTS, forced: int = FREE) -> list[tuple[int, ...]]:
    """Runs cases through `rows` slots and returns their texts.

    They are admitted at random times, whoever sits beside them; now and then one is sent away in the middle of its
    text, and comes back later.
    """
    random, plan, programs = np.random.default_rng(seed), lab.programs.plan, lab.programs
    initial = functools.partial(plan.lookahead.init, costs=lookahead.given_costs(plan.k_max, 0.2))
    batch = request(cases, rules=plan.rules)
    state = programs.vacant(initial(rows), slots)
    waiting, seats, found = list(range(len(cases))), [-1] * rows, {}
    sent_away = 0
    while waiting or max(seats) >= 0:
        for slot in range(rows):
            if waiting and seats[slot] < 0 and random.random() < 0.6:
                seats[slot] = waiting.pop(0)
                one = jax.tree.map(lambda x, at=seats[slot]: x[at : at + 1], batch)
                row = programs.start(lab.verifier, lab.drafter, one, initial(1), slots)
                state = programs.insert(state, row, jnp.int32(slot))
        stop = np.array([at < 0 for at in seats])
        leaving = int(random.integers(rows))
        if seats[leaving] >= 0 and sent_away < len(cases) and random.random() < 0.2:
            waiting.append(seats[leaving])
            seats[leaving], stop[leaving], sent_away = -1, True, sent_away + 1
        count, eager = jnp.int32(random.integers(1, 5)), jnp.bool_(random.random() < 0.5)
        state = programs.run(lab.verifier, lab.drafter, state, jnp.asarray(stop), count, jnp.int32(forced), eager)
        text = texts(state)
        for slot, at in enumerate(seats):
            if at >= 0 and not state.running[slot]:
                found[at], seats[slot] = text[slot], -1
    assert sent_away > 0
    return [found[at] for at in range(len(cases))]


PROMPTS = ((1,), (1, 2, 0), (2, 3))


@functools.cache
def crowd(new: int = 40, rule: str | None = None, temperature: float | None = None) -> tuple[Case, ...]:
    """Returns 112 different cases: every rule with every setting; lengths, limits and strict tokens mixed.

    A multiple of the number of controllers, so that a batch may be turned and every row keeps its own.

    Args:
      new: most new tokens; rows are asked for 5 to 13 fewer by turns.
      rule, temperature: where given, of every row.
    """
    cases = [(name, settings) for name in NAMES for settings in SETTINGS]
    cases += [("lossless", settings) for settings in SETTINGS]
    assert len(cases) % len(CONTROLLERS) == 0
    return tuple(
        Case(
            rule or name,
            settings if temperature is None else Settings(temperature),
            PROMPTS[i % 3],
            new=new - (0, 5, 9, 0, 13)[i % 5],
            seed=i,
            strict=(0, 0, 0, 6)[i % 4],
        )
        for i, (name, settings) in enumerate(cases)
    )


def sequential_text(lab: Lab, case: Case) -> tuple[int, ...]:
    """One token at a time, in Python, with no cache: argmax(log pi + g), g of this request and position.

    pi is the verifier's own law for the first `case.strict` tokens.
    """
    pi, _, p = case.tables(lab.q_table, lab.p_table)
    vocab_size, text = pi.shape[1], list(case.prompt)
    end = len(text) + case.new
    positions = jnp.arange(SLOTS, dtype=jnp.int32)
    noise = gumbel(stream(jax.random.key(case.seed)[None], positions[None], Purpose.TOKEN), vocab_size)[0]
    noise = np.asarray(noise, np.float64)
    with np.errstate(divide="ignore"):
        while len(text) < end and EOS not in text:
            before = text[-2] if len(text) > 1 else 0
            law = (p if len(text) < len(case.prompt) + case.strict else pi)[before * vocab_size + text[-1]]
            text.append(int(np.argmax(np.log(law) + noise[len(text)])))
    return tuple(text)


def greedy_text(lab: Lab, case: Case) -> tuple[int, ...]:
    """The verifier alone, in Python: the first largest logit, again and again."""
    text = list(case.prompt)
    while len(text) < len(case.prompt) + case.new and EOS not in text:
        before = text[-2] if len(text) > 1 else 0
        text.append(int(np.argmax(lab.p_table[before * lab.p_table.shape[1] + text[-1]])))
    return tuple(text)


def tally(tokens, vocab_size: int):
    """Counts sequences: int `[n, length]` to an array with one axis a token."""
    tokens = np.asarray(tokens)
    counts = np.zeros((vocab_size,) * tokens.shape[1], np.int64)
    np.add.at(counts, tuple(tokens.T), 1)
    return counts


def chi_square(counts, law) -> tuple[float, int]:
    """Returns Pearson's statistic and its degrees of freedom; cells that expect fewer than 5 are pooled.

    A count where the law is 0 makes the statistic infinite.
    """
    counts, law = np.ravel(counts), np.ravel(law)
    if counts[law < 1e-12].any():
        return np.inf, 1
    counts, expected = counts[law >= 1e-12], law[law >= 1e-12] * counts.sum()
    small = expected < 5
    counts = np.append(counts[~small], counts[small].sum())
    expected = np.append(expected[~small], expected[small].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    return float(np.sum((counts - expected) ** 2 / expected)), len(counts) - 1


def assert_follows(counts: list, laws: list):
    """Checks samples against their laws: a joint chi-square, each case's own, and each total variation.

    The joint test has p > 1e-3; a single case of `m` has p > 1e-3 / m, so that many cases do not fail by chance.
    """
    results = [chi_square(count, law) for count, law in zip(counts, laws, strict=True)]
    statistic, freedom = sum(s for s, _ in results), sum(f for _, f in results)
    assert stats.chi2.sf(statistic, max(freedom, 1)) > 1e-3, (statistic, freedom)
    for i, (count, law) in enumerate(zip(counts, laws, strict=True)):
        statistic, freedom = results[i]
        assert statistic < 1e-6 or stats.chi2.sf(statistic, max(freedom, 1)) > 1e-3 / len(results), i
        total = count.sum()
        # E[TV] of an empirical law is at most half the sum of the cells' standard deviations; it is concentrated.
        bound = 0.5 * np.sum(np.sqrt(law * (1 - law) / total)) + 3.0 / np.sqrt(total)
        assert reference.distance(count / total, law) < bound, i
