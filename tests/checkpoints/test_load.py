import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cascades import checkpoints
from cascades.checkpoints import reader
from cascades.errors import UserError
from cascades.models import decoder
from cascades.tokenizers import load as load_tokenizer


def test_an_empty_directory_says_what_was_expected(tmp_path):
    (tmp_path / "readme.txt").write_text("")
    with pytest.raises(UserError, match="should be a GGUF file, a directory with config.json.*holds readme.txt"):
        checkpoints.load(tmp_path)


def test_a_directory_with_one_gguf_file(build, write_gguf, tmp_path, assert_params):
    model = build("qwen2")
    path = write_gguf(model)
    loaded = checkpoints.load(tmp_path)
    assert loaded.path == path
    assert_params(loaded.params, model.params)
    write_gguf(model, "another.gguf")
    with pytest.raises(UserError, match="holds another.gguf, model.gguf: give one model"):
        checkpoints.load(tmp_path)


def test_formats_agree(build, write_gguf, write_huggingface, assert_params):
    model = build("llama")
    first, second = checkpoints.load(write_gguf(model)), checkpoints.load(write_huggingface(model))
    assert first.config == second.config
    assert_params(first.params, second.params)


def test_read_config_reads_no_weights(model, write_gguf, write_huggingface, monkeypatch):
    monkeypatch.setattr(reader, "read_params", None)
    assert checkpoints.read_config(write_gguf(model)) == model.config
    expected = model.config
    assert checkpoints.read_config(write_huggingface(model)) == expected


def test_shardings_are_asked_with_the_abstract_tree(build, write_gguf, assert_params):
    model = build("gemma3")
    mesh = jax.make_mesh((1,), ("model",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def shardings(tree):
        assert tree["embed"]["embedding"].shape == (48, 64)
        return jax.tree.map(lambda _: sharding, tree)

    params = checkpoints.load(write_gguf(model), shardings=shardings).params
    assert {leaf.sharding for leaf in jax.tree.leaves(params)} == {sharding}
    assert_params(params, model.params)


def test_a_loaded_model_runs(build, write_gguf):
    model = build("gemma2")
    loaded = checkpoints.load(write_gguf(model))
    functions = decoder(loaded.config)
    tokens = jnp.arange(9, dtype=jnp.int32)[None]
    trees = (loaded.params, model.params)
    logits = [functions.extend(params, tokens, functions.init_cache(1, 12))[0].logits for params in trees]
    np.testing.assert_array_equal(*logits)


def test_the_tokenizer_is_found_at_the_path(build, write_gguf):
    path = checkpoints.load(write_gguf(build("llama"))).path
    assert load_tokenizer(path).vocab_size == 48


def test_arrays_reach_jax_without_a_copy():
    value = reader.empty((3, 5), np.float32)
    value[...] = 1
    assert reader.put(value, None).unsafe_buffer_pointer() == value.ctypes.data
    transposed = reader.put(value.T, None)
    np.testing.assert_array_equal(transposed, value.T)
