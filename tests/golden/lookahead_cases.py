"""What `verifier_guided` is asked and told in the recorded traces; no models, and NumPy's chance alone."""

import jax
import jax.numpy as jnp
import numpy as np

from cascades.lookahead import Drafted, Verdict, given_costs

ROUNDS, K_MAX = 60, 8
RATES = np.array([0.05, 0.5, 0.8, 0.97])  # how often each row's drafts are accepted; the other way round later
CASES = {
    "default": ({}, given_costs(K_MAX, 0.2)),
    "restless": ({"patience": 2}, given_costs(K_MAX, 0.37, (1.0, 1.35, 1.4, 1.45, 1.45, 1.5, 1.5, 1.55, 1.55))),
    "forgetful": (
        {"memory": 0.9, "prior": 1.0, "patience": 3, "longest_wait": 10},
        given_costs(K_MAX, 0.1, (1.0, 1.6, 1.6, 1.7, 1.7, 2.2, 2.2, 2.2, 2.2)),
    ),
}


def trace(controller, costs) -> dict:
    """Returns what a controller proposed, stepped and drafted in every round of every row, and its last state."""
    generator = np.random.default_rng(7)
    rows, column = len(RATES), np.arange(K_MAX)[None, :]
    propose, step, update = (jax.jit(each) for each in (controller.propose, controller.step, controller.update))
    state = controller.init(rows, costs)
    proposed, stepped, drafted = [], [], []
    for number in range(ROUNDS):
        rates = (RATES if number < ROUNDS // 2 else RATES[::-1])[:, None]
        top = generator.uniform(size=(rows, K_MAX)).astype(np.float32)
        expected = np.clip(rates + generator.normal(0, 0.1, (rows, K_MAX)), 0, 1).astype(np.float32)
        likes = generator.uniform(size=(rows, K_MAX)) < rates
        state, wanted, _ = propose(state, np.zeros(rows, np.int32), None)
        length = np.clip(np.asarray(wanted), 0, K_MAX)
        steps = np.zeros(rows, np.int32)
        for index in range(K_MAX):
            drafting = index < length
            state, keep, more = step(
                state, Drafted(jnp.int32(index), jnp.asarray(top[:, index]), jnp.asarray(drafting))
            )
            steps += drafting
            length = np.where(drafting & ~np.asarray(more), np.where(keep, index + 1, index), length)
        within = column < length[:, None]
        accepted = np.cumprod(likes & within, axis=1).sum(axis=1)
        told = Verdict(
            steps=jnp.asarray(steps, jnp.int32),
            drafted=jnp.asarray(length, jnp.int32),
            accepted=jnp.asarray(accepted, jnp.int32),
            expected=jnp.asarray(expected),
            decided=jnp.asarray((column <= accepted[:, None]) & within),
            top=jnp.asarray(top),
            matched=jnp.zeros((rows, K_MAX), jnp.int32),
            counted=jnp.asarray(np.arange(rows) % 2 == 0),
        )
        state = update(state, told)
        proposed.append(np.minimum(np.asarray(wanted), K_MAX).tolist())
        stepped.append(steps.tolist())
        drafted.append(length.tolist())
    last = {name: np.asarray(leaf).tolist() for name, leaf in state._asdict().items()}
    return {"proposed": proposed, "stepped": stepped, "drafted": drafted, "state": last}
