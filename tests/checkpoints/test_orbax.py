import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cascades import checkpoints
from cascades.checkpoints import orbax
from cascades.errors import UserError
from cascades.models import decoder


@pytest.fixture
def saved(model, tmp_path):
    checkpoints.save(tmp_path / "ours", model.config, model.params)
    return tmp_path / "ours"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_every_family_comes_back_exactly(model, saved, assert_params, dtype):
    loaded = checkpoints.load(saved, dtype=dtype)
    assert loaded.config == model.config == checkpoints.read_config(saved)
    assert loaded.path == saved
    assert_params(loaded.params, model.params, dtype)


def test_params_land_on_their_shardings(build, tmp_path, assert_params):
    model = build("llama")
    checkpoints.save(tmp_path / "ours", model.config, model.params)
    mesh = jax.make_mesh((1,), ("model",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    params = checkpoints.load(tmp_path / "ours", shardings=lambda tree: jax.tree.map(lambda _: sharding, tree)).params
    assert {leaf.sharding for leaf in jax.tree.leaves(params)} == {sharding}
    assert_params(params, model.params)


def test_a_taken_directory_is_left_alone(build, tmp_path):
    model = build("llama")
    (tmp_path / "ours").mkdir()
    checkpoints.save(tmp_path / "ours", model.config, model.params)  # an empty one is no obstacle
    before = (tmp_path / "ours" / "cascades.json").read_text()
    with pytest.raises(UserError, match="is taken"):
        checkpoints.save(tmp_path / "ours", build("qwen2").config, build("qwen2").params)
    assert (tmp_path / "ours" / "cascades.json").read_text() == before


def test_places_that_cannot_be_written(build):
    model = build("llama")
    with pytest.raises(UserError, match="not in 's3://bucket/ours'"):
        checkpoints.save("s3://bucket/ours", model.config, model.params)


def test_params_must_fit_the_config(build, tmp_path):
    with pytest.raises(UserError, match=r"missing: layers/\*/k/bias \(2 layers\)"):
        checkpoints.save(tmp_path / "ours", build("qwen2").config, build("gemma").params)
    assert list(tmp_path.iterdir()) == []


def test_nothing_stays_when_a_save_fails(build, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(orbax, "copy_tokenizer", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(tmp_path / "ours", build("llama").config, build("llama").params, tokenizer_source=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_directorys_tokenizer_goes_along(build, tmp_path):
    source = tmp_path / "hf"
    source.mkdir()
    for name in ("tokenizer.json", "chat_template.jinja", "config.json"):
        (source / name).write_text(name)
    checkpoints.save(tmp_path / "ours", build("llama").config, build("llama").params, tokenizer_source=source)
    names = {path.name for path in (tmp_path / "ours").iterdir()}
    assert names == {"params", "cascades.json", "tokenizer.json", "chat_template.jinja"}


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({"eos_token_id": 7, "bos_token_id": 1}, None, {"eos_token_id": [7], "bos_token_id": 1}),
        ({"eos_token_id": [7, 8]}, {"eos_token_id": 9, "top_k": 3}, {"eos_token_id": [7, 8, 9], "top_k": 3}),
        ({"eos_token_id": 7}, {"eos_token_id": [9, 7]}, {"eos_token_id": [9, 7]}),
        ({"eos_token_id": "7"}, None, None),
        ([7], {"eos_token_id": 9}, {"eos_token_id": 9}),
        ({"text_config": {"eos_token_id": [7, 8]}}, {"eos_token_id": 9}, {"eos_token_id": [7, 8, 9]}),
        ({"eos_token_id": 6, "text_config": {"eos_token_id": 7}}, None, {"eos_token_id": [6]}),
    ],
)
def test_ends_that_config_json_alone_knows_go_along(tmp_path, config, generation, expected):
    source, target = tmp_path / "hf", tmp_path / "ours"
    (source / "additional_chat_templates").mkdir(parents=True)
    target.mkdir()
    (source / "additional_chat_templates" / "rag.jinja").write_text("x")
    (source / "tokenizer.json").write_text("{}")
    (source / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (source / "generation_config.json").write_text(json.dumps(generation))
    orbax.copy_tokenizer(source, target)
    written = target / "generation_config.json"
    assert (json.loads(written.read_text()) if written.exists() else None) == expected
    assert (target / "additional_chat_templates" / "rag.jinja").read_text() == "x"


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model", "pieces.model"])
def test_what_stands_beside_a_model_file_goes_along(tmp_path, name):
    """As `tokenizers.load` reads it: the files that say what a tokenizer leaves open, but no other tokenizer."""
    source, target = tmp_path / "hf", tmp_path / "ours"
    source.mkdir()
    target.mkdir()
    for file in (name, "tokenizer_config.json", "processor_config.json", "tokenizer.json", "vocab.json"):
        (source / file).write_text(file)
    (source / "config.json").write_text('{"eos_token_id": 7}')
    orbax.copy_tokenizer(source / name, target)
    own = "spiece.model" if name == "spiece.model" else "tokenizer.model"
    settings = {"tokenizer_config.json", "processor_config.json", "generation_config.json"}
    assert {path.name for path in target.iterdir()} == {own, *settings} and (target / own).read_text() == name


def test_a_tokenizer_that_is_given_as_tokenizer_json_goes_along(tmp_path):
    source, target = tmp_path / "hf", tmp_path / "ours"
    source.mkdir()
    target.mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (source / file).write_text(file)
    orbax.copy_tokenizer(source / "tokenizer.json", target)
    assert {path.name for path in target.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}


def test_a_tokenizer_beside_a_released_gemma(build, tmp_path):
    (tmp_path / "released" / "2b").mkdir(parents=True)
    (tmp_path / "released" / "tokenizer.model").write_bytes(b"pieces")
    config, params = build("gemma").config, build("gemma").params
    checkpoints.save(tmp_path / "ours", config, params, tokenizer_source=tmp_path / "released" / "2b")
    assert (tmp_path / "ours" / "tokenizer.model").read_bytes() == b"pieces"


def rewrite(directory, change):
    path = directory / "cascades.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content.update(format=2), "format 2"),
        (lambda content: content["config"].update(num_layers=10**6), "should hold 1000000 layers"),
        (lambda content: content.pop("config"), "cannot be read"),
        (lambda content: content["config"].update(experts=8), "gives experts"),
        (lambda content: content["config"].pop("d_ff"), "d_ff"),
    ],
)
def test_a_description_that_does_not_fit(build, tmp_path, change, reason):
    model = build("llama")
    checkpoints.save(tmp_path / "ours", model.config, model.params)
    rewrite(tmp_path / "ours", change)
    with pytest.raises(UserError, match=reason):
        checkpoints.load(tmp_path / "ours")


@pytest.mark.parametrize("cut", [0, 1, None])
def test_an_interrupted_copy(build, tmp_path, cut):
    model = build("llama")
    checkpoints.save(tmp_path / "ours", model.config, model.params)
    largest = max((tmp_path / "ours" / "params").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    size = largest.stat().st_size
    if cut is None:
        largest.unlink()
    else:
        largest.write_bytes(largest.read_bytes()[: size - 1] if cut else b"")
    with pytest.raises(
        UserError, match=f"{largest.name} should be {size} bytes long, but has {size - 1 if cut else 0}"
    ):
        checkpoints.load(tmp_path / "ours")


def test_tensors_that_do_not_fit_are_named(build, tmp_path):
    model = build("llama")
    checkpoints.save(tmp_path / "ours", model.config, model.params)
    rewrite(tmp_path / "ours", lambda content: content["config"].update(d_ff=97, num_layers=3))
    with pytest.raises(UserError, match=r"missing: layers/2/.*misshapen: layers/\*/down/kernel is \[64, 96\]"):
        checkpoints.load(tmp_path / "ours")


def test_loaded_params_run(build, tmp_path):
    model = build("gemma3")
    checkpoints.save(tmp_path / "ours", model.config, model.params)
    params = checkpoints.load(tmp_path / "ours").params
    functions = decoder(model.config)
    tokens = jnp.arange(5, dtype=jnp.int32)[None]
    outputs = [functions.extend(tree, tokens, functions.init_cache(1, 8))[0].logits for tree in (params, model.params)]
    np.testing.assert_array_equal(*outputs)
