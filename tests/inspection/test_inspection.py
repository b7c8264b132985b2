"""What a model or a pair is told to be, and everything that would be refused of it."""

import json
import shutil

import jax
import pytest
import tiny
from fuzzing import bases

from cascades import checkpoints, inspection
from cascades.errors import UserError
from cascades.generation import load_pair
from cascades.inspection import pair as pairs
from cascades.inspection.show import model_lines, pair_lines
from cascades.models import DecoderConfig, RopeScaling, T5Config, decoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    bases.write(folder)
    return folder


def told(*uris, **presets) -> dict:
    report = (
        inspection.to_json(inspection.inspect(*uris, **presets))
        if len(uris) == 1
        else pairs.pair_to_json(inspection.inspect_pair(*uris, **presets))
    )
    assert json.loads(json.dumps(report)) == report
    return report


def text(lines) -> dict[str, str]:
    return {title: line for title, line, _ in lines}


def refused(report) -> dict[str, str]:
    return {problem["part"]: problem["reason"] for problem in report["problems"]}


@pytest.fixture
def copy(folder, tmp_path):
    """Returns a function that copies a base and writes other files over it."""

    def copy(name, **files):
        target = tmp_path / name
        shutil.copytree(folder / name, target)
        for stem, content in files.items():
            path = target / stem.replace("__", ".")
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return target

    return copy


def test_a_llama(folder):
    report = told(str(folder / "llama"))
    assert report["loads"] and report["problems"] == [] and report["format"] == "Hugging Face (safetensors)"
    shape = report["architecture"]
    assert (shape["family"], shape["num_layers"], shape["context_length"]) == ("llama", 2, 320)
    assert report["parameters"] == report["weights"]["types"]["F32"] and report["weights"]["tensors"] == 21
    tokens = report["tokenizer"]
    assert (tokens["kind"], tokens["vocabulary"]) == ("byte-level BPE", 300)
    assert {"id": 2, "piece": "<|im_end|>"} in tokens["ends_of_turn"]
    assert tokens["control"] == {"count": 3, "first": list(tiny.SPECIALS)}
    assert report["chat_templates"] == ["default"]
    lines = text(model_lines(report))
    assert lines["rope"] == "theta 10000, llama3 scaling by 8 from 80"
    assert lines["heads"] == "2 heads of 16, 1 of keys and values"
    assert lines["ok"] == "it would load" and "refused" not in lines


def test_a_gemma_in_gguf(folder):
    report = told(str(folder / "gemma3.gguf"))
    lines = text(model_lines(report))
    assert report["loads"] and lines["family"] == "gemma3"
    assert lines["sliding layers"] == "all, window 6" and lines["quantisation"] == "none"
    assert lines["rope"] == "theta 10000, 10000 on sliding layers, linear scaling by 8"
    assert lines["BOS"] == lines["before a text"] == "<bos> (2)" and lines["chat template"] == "none"
    assert lines["tokenizer"] == "SentencePiece, 300 tokens"
    assert "<end_of_turn>" in lines["ends of turn"]


def test_a_t5(folder):
    report = told(str(folder / "t5"))
    lines = text(model_lines(report))
    assert report["loads"] and lines["family"] == "t5 v1.1"
    assert lines["layers"] == "2 of the encoder, 2 of the decoder"
    assert lines["positions"] == "relative, 32 buckets up to 128"
    assert lines["behind a text"] == "</s> (1)"


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "llama"),
        ({"qkv_bias": True}, "qwen2"),
        ({"embed_scale": True, "activation": "gelu_tanh"}, "gemma"),
        ({"embed_scale": True, "activation": "gelu_tanh", "post_norms": True}, "gemma2"),
        ({"embed_scale": True, "activation": "gelu_tanh", "post_norms": True, "qk_norm": True}, "gemma3"),
        ({"reads_features": True}, "llama, reads hidden states of a verifier (EAGLE)"),
    ],
)
def test_the_family_is_told_by_the_config(fields, name):
    from cascades.inspection.model import family

    assert family(tiny.shape(1).__class__(**vars(tiny.shape(1)) | fields)) == name


@pytest.mark.parametrize(
    ("file", "content", "part", "reason"),
    [
        ("config__json", {"model_type": "mamba"}, "config", "'mamba'"),
        ("config__json", bases.CONFIGS["llama"] | {"rope_scaling": {"rope_type": "yarn"}}, "config", "yarn"),
        ("config__json", bases.CONFIGS["llama"] | {"intermediate_size": 64}, "tensors", "misshapen"),
        ("model__safetensors__index__json", {"weight_map": {"a": "no.safetensors"}}, "file", "no.safetensors"),
        ("tokenizer__json", "{}", "tokenizer", "tokenizer.json"),
        ("chat_template__jinja", "{% for", "template", "does not parse"),
        ("chat_template__jinja", "{{ raise_exception('no user here') }}", "template", "no user here"),
    ],
)
def test_what_would_be_refused_is_told_by_its_part(copy, file, content, part, reason):
    report = told(str(copy("llama", **{file: content})))
    assert not report["loads"] and reason in refused(report)[part], report["problems"]
    assert f"{part}: " in text(model_lines(report))["refused"]


def test_a_broken_tokenizer_does_not_hide_the_model(copy):
    report = told(str(copy("llama", tokenizer__json="{}")))
    assert report["architecture"]["family"] == "llama" and report["tokenizer"] is None
    assert set(refused(report)) == {"tokenizer"}


def test_every_problem_is_told(copy):
    broken = copy("llama", config__json={"model_type": "mamba"}, chat_template__jinja="{% for")
    assert set(refused(told(str(broken)))) == {"config", "template"}
    (broken / "tokenizer.json").write_text("")
    (broken / "model-00001-of-00002.safetensors").write_text("")
    assert set(refused(told(str(broken)))) == {"config", "tokenizer", "file"}


def test_a_tokenizer_with_more_ids_than_logits_is_noted(copy):
    smaller = copy("t5", config__json=bases.CONFIGS["t5"] | {"vocab_size": 290})
    assert any("stand behind the model's 290 logits" in note for note in told(str(smaller))["notes"])


def test_a_pair(folder):
    report = told(str(folder / "llama.gguf"), str(folder / "llama"))
    assert report["loads"] and report["pair"]["problems"] == []
    assert report["pair"]["shared_vocabulary"] == 300 and report["pair"]["first_difference"] is None
    assert report["pair"]["contexts"] == {"verifier": tiny.CONTEXT, "drafter": 320}
    lines = text(pair_lines(report))
    assert lines["ok"] == "they go together" and "family" in lines


def test_a_pair_with_other_ends_and_a_shorter_context(copy, folder):
    drafter = copy(
        "llama",
        config__json=bases.CONFIGS["llama"] | {"max_position_embeddings": 64, "eos_token_id": 5},
        generation_config__json={},
    )
    report = told(str(folder / "llama.gguf"), str(drafter))
    assert report["loads"]
    assert [each["id"] for each in report["pair"]["ends_only_drafter"]] == [5]
    lines = text(pair_lines(report))
    assert lines["contexts"] == f"{tiny.CONTEXT}, the drafter's 64: behind 64 tokens nothing is drafted"
    assert lines["ends of turn"].startswith("only the drafter ends at ")


def test_another_vocabulary(folder, tmp_path):
    tokenizer = tiny.train(tiny.STRANGE)
    tiny.write_gguf(tmp_path / "strange.gguf", tiny.weights(), tokenizer)
    report = told(str(folder / "llama.gguf"), str(tmp_path / "strange.gguf"))
    assert not report["loads"] and report["verifier"]["loads"] and report["drafter"]["loads"]
    at = report["pair"]["first_difference"]
    assert at["id"] > 200 and at["verifier"] != at["drafter"]
    assert f"token {at['id']} is " in refused(report["pair"])["vocabulary"]
    assert text(pair_lines(report))["first difference"].startswith(f"{at['id']}: ")


def test_a_decoder_and_an_encoder_decoder(folder):
    assert "do not go together" in refused(told(str(folder / "gemma"), str(folder / "t5"))["pair"])["starts"]


@pytest.fixture
def eagle(tmp_path):
    """Returns a function that writes a drafter that reads features, and its verifier beside it."""

    def write(width):
        shape = DecoderConfig(**vars(tiny.shape(1)) | {"d_model": width, "reads_features": True, "tied_head": False})
        params = decoder(shape).init(jax.random.key(0))
        checkpoints.save(tmp_path / "eagle", shape, params, shared=["embed"])
        tokenizer = tiny.train(tiny.CORPUS)
        tokenizer.save(str(tmp_path / "eagle" / "tokenizer.json"))
        (tmp_path / "eagle" / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
        return str(tmp_path / "eagle")

    return write


def test_a_drafter_that_reads_its_verifier(eagle, folder):
    drafter, verifier = eagle(32), str(folder / "llama.gguf")
    report = told(verifier, drafter)
    assert (
        report["loads"]
        and report["pair"]["reads_features"]
        and load_pair(tiny.specs(verifier=verifier, drafter=drafter)["pair"])
    )
    alone = told(drafter)
    assert alone["loads"] and alone["shared"] == ["embed"] and "DRAFTER of a pair alone" in alone["notes"][0]
    assert "cannot be a VERIFIER" in refused(told(drafter, verifier)["pair"])["verifier"]


def test_a_drafter_of_another_verifier(eagle, folder):
    drafter, verifier = eagle(48), str(folder / "llama.gguf")
    told_pair = refused(told(verifier, drafter)["pair"])
    assert "hidden states of 48 numbers" in told_pair["features"] and "another verifier" in told_pair["shared"]
    with pytest.raises(UserError) as error:
        load_pair(tiny.specs(verifier=verifier, drafter=drafter)["pair"])
    assert str(error.value) in told_pair.values()


@pytest.mark.parametrize(
    ("drafter", "part", "reason"),
    [
        ("ngram://3", None, ""),
        ("ngram://2+{}/llama", None, ""),
        ("ngram://0", "drafter", "at least 1"),
        ("ngram:/3", "drafter", "written ngram://N"),
        ("shipped://nothing", "alone", "no drafter 'nothing'"),
        ("shipped://smollm2-135m-eagle", "vocabulary", "share one vocabulary"),
        ("ngram://2+{}/gemma", "vocabulary", "share one vocabulary"),
    ],
)
def test_drafters_by_other_names(folder, drafter, part, reason):
    name = drafter.format(folder)
    report = told(str(folder / "llama.gguf"), name)
    assert report["pair"]["drafter"] == name and report["loads"] == (part is None)
    if part == "alone":
        assert reason in report["drafter"]["problems"][0]["reason"]
        assert text(pair_lines(report))["refused"] == "drafter: would be refused, see above"
    elif part:
        assert reason in refused(report["pair"])[part]
    if "ngram://2" in name:
        assert report["pair"]["looks_up"] == 2 and report["drafter"]


def test_what_is_told_of_a_pair_is_what_loading_says(folder, tmp_path):
    verifier = str(folder / "llama.gguf")
    for drafter in ("llama", "qwen2", "gemma", "t5", "gemma3.gguf"):
        report = told(verifier, str(folder / drafter))
        try:
            load_pair(tiny.specs(verifier=verifier, drafter=str(folder / drafter))["pair"])
        except UserError as error:
            assert str(error) in [problem["reason"] for problem in report["pair"]["problems"]]
        else:
            assert report["loads"], report["pair"]["problems"]


def test_run_prints_lines_or_json(folder, capsys):
    assert inspection.run([str(folder / "llama")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"model             {folder / 'llama'}" and lines[-1] == "ok                it would load"
    assert "\x1b" not in "".join(lines)
    assert not inspection.run([str(folder / "llama"), str(folder / "gemma")], as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["loads"] is False and report["pair"]["first_difference"]
    with pytest.raises(UserError, match="one model or a pair"):
        inspection.run(["a", "b", "c"])


def test_a_terminal_gets_colours_and_nothing_that_it_would_obey(copy, monkeypatch, capsys):
    folder = copy("llama", chat_template__jinja="{% for")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not inspection.run([str(folder)])
    out = capsys.readouterr().out
    assert "\x1b[31m" in out or "\x1b[1;31m" in out
    piece = inspection.show._shown("\x1b[31mred")
    assert piece == repr("\x1b[31mred")


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0 "), (999, "999 "), (1000, "1 K"), (134_515_008, "135 M"), (999_999, "1 M"), (8_030_261_248, "8.03 G")],
)
def test_sizes_are_shown_in_three_digits(number, shown):
    assert inspection.show._count(number) == shown


def test_layers_that_slide_are_named():
    shape = DecoderConfig(
        **vars(tiny.shape(4))
        | {
            "rope_scaling": RopeScaling(kind="linear", factor=2.0),
            "window": 8,
            "local_layers": (True, False, True, True),
        }
    )
    from cascades.inspection.model import _architecture

    assert _architecture(shape)["local_layers"] == [0, 2, 3]
    t5 = T5Config(vocab_size=9, num_layers=1, num_decoder_layers=2, d_model=8, d_ff=8, num_heads=2, head_dim=4)
    assert _architecture(t5)["family"] == "t5 v1.1"
