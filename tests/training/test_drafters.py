"""What a drafter begins as."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cascades import checkpoints
from cascades.errors import UserError
from cascades.training import drafters


@pytest.fixture(scope="module")
def teacher(tiny_files):
    return checkpoints.load(tiny_files.verifier, dtype=jnp.float32)


def saved(begun, path, source):
    checkpoints.save(path, begun.config, begun.params, tokenizer_source=source, shared=begun.shared)
    return str(path)


def test_an_eagle_drafter_goes_on_where_another_ended(teacher, tmp_path):
    """Its layers are the trained ones; of its head, the rows of tokens that both score."""
    size = teacher.config.vocab_size
    first, second = np.zeros(size, np.int64), np.zeros(size, np.int64)
    first[10:40], second[20:50] = 1, 1
    trained = drafters.eagle(vocabulary=30)(teacher, first, jax.random.key(0))
    shifted = {name: trained.params[name] for name in ("embed", "head_ids")}
    others = {name: leaf for name, leaf in trained.params.items() if name not in shifted}
    trained = trained._replace(params=shifted | jax.tree.map(lambda leaf: leaf + 1, others))
    uri = saved(trained, tmp_path / "drafter", teacher.path)

    begun = drafters.eagle(vocabulary=30, uri=uri)(teacher, second, jax.random.key(1))
    fresh = drafters.eagle(vocabulary=30)(teacher, second, jax.random.key(1))
    np.testing.assert_array_equal(begun.params["head_ids"], np.arange(20, 50))
    head, before = begun.params["head"]["kernel"], trained.params["head"]["kernel"]
    np.testing.assert_allclose(head[:20], before[10:])
    np.testing.assert_allclose(head[20:], fresh.params["head"]["kernel"][20:])
    for name in ("layers", "fuse", "final_norm", "token_norm", "feature_norm"):
        jax.tree.map(np.testing.assert_allclose, begun.params[name], trained.params[name])
    assert begun.config == fresh.config and begun.frozen == fresh.frozen and begun.shared == fresh.shared


def test_a_drafter_of_another_shape_is_refused(teacher, tmp_path):
    counts = np.arange(teacher.config.vocab_size)
    two = drafters.eagle(layers=(0, -1), vocabulary=30)(teacher, counts, jax.random.key(0))
    uri = saved(two, tmp_path / "two", teacher.path)
    with pytest.raises(UserError, match="with as many eagle.layers"):
        drafters.eagle(vocabulary=30, uri=uri)(teacher, counts, jax.random.key(0))
    with pytest.raises(UserError, match="with as many eagle.layers"):
        drafters.eagle(vocabulary=30, uri=str(teacher.path))(teacher, counts, jax.random.key(0))
