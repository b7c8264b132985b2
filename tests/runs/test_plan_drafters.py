"""A table of drafters: every kind and place is compiled once, from the loop's own passes, and what is known is kept."""

import json

import jax
import pytest

from cascades import rules
from cascades.errors import UserError
from cascades.generation import ModelSpec
from cascades.models import DecoderConfig
from cascades.planning.cells import Cell
from cascades.planning.chips import CHIPS
from cascades.planning.passes import Side, Sizes
from cascades.planning.shapes import Planned
from cascades.runs import plan_drafters as module
from cascades.runs.plan_drafters import jobs_of, plan_drafters
from cascades.sharding import layout, mesh_of
from cascades.training.drafters import eagle, shallow

CONFIG = DecoderConfig(
    vocab_size=96, num_layers=2, d_model=32, d_ff=64, num_heads=2, num_kv_heads=2, head_dim=16, context_length=64
)
CELL = Cell(Planned("tiny", CONFIG, ModelSpec(uri="tiny")), batch=2, context=32, topology="v5e:1x1")
SIZES = Sizes(batch=2, slots=32, vocabulary=96, k_max=3)
KINDS = [eagle(vocabulary=24), shallow(layers=(0,))]


def jobs(uri=None, made=KINDS, strategy=("replicated",)):
    drafter = ModelSpec(uri=uri, strategy=strategy)
    return jobs_of([CELL], drafter, made, lambda cell, models: SIZES)


def on(topology, *, models, features):
    """The pair on one device of this machine, as if it were a chip."""
    place = layout(mesh_of(jax.devices()[:1], 1, 1), "tensor")
    large, small = (each.config for each in models)
    return CHIPS["v5e"], (Side(large, place, kernels=False, features=features), Side(small, place, kernels=False))


@pytest.fixture
def compiled(monkeypatch):
    """Which passes are compiled: 0 is a drafter step, else the width of a verifier pass."""
    seen = []
    for name in ("draft_cost", "verify_cost"):
        true = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, true=true: seen.append(sum(given[1:])) or true(*given))
    return seen


def test_the_verifier_is_compiled_once_and_a_table_goes_on(compiled, tmp_path, capsys):
    output = tmp_path / "table.jsonl"
    planned = jobs(["ngram://3"])
    lines = plan_drafters(planned, on, rules.token_v3, {"strategy": "tensor"}, str(output))
    assert compiled == [1, 4, 0, 0]
    assert [line["drafter"] for line in lines] == ["eagle 1x32, 24 tokens", "shallow 1x32", "ngram://3"]
    assert [json.loads(line) for line in output.read_text().splitlines()] == lines
    first, second, look_up = lines
    assert first["verify"] == second["verify"] == look_up["verify"] and look_up["draft"] is None
    assert look_up["c"] == 0 < first["c"] and first["draft"]["moved"] != second["draft"]["moved"]
    assert first["needed"] > first["verify"]["4"]["least"] + first["held"]
    shown = capsys.readouterr().out
    assert "eagle 1x32, 24 tokens" in shown and "no measurement" in shown and "tree*" in shown

    compiled.clear()
    output.write_text("".join(output.read_text().splitlines(keepends=True)[:1]))
    assert plan_drafters(planned, on, rules.token_v3, {"strategy": "tensor"}, str(output)) == lines
    assert compiled == [0] and capsys.readouterr().out == shown
    plan_drafters(planned, on, rules.token_v3, {"strategy": "fsdp"}, str(output))
    assert compiled == [0, 1, 4, 0, 0]  # another place is another plan


def test_every_drafter_is_planned_under_every_strategy():
    (job,) = jobs("gemma2_2b", strategy=["replicated", "tensor"])
    names = [each.name for each in job.drafters]
    assert names == [name for name in ("gemma2_2b", "eagle 1x32, 24 tokens", "shallow 1x32") for _ in range(2)]
    assert [each.spec.strategy for each in job.drafters] == ["replicated", "tensor"] * 3
    assert job.features and not job.look_ups
    (job,) = jobs(None, [shallow(layers=(0,))])
    assert not job.features, "the verifier keeps features where a drafter reads them"


def test_what_does_not_fit_is_told_and_not_compiled(compiled, monkeypatch, capsys):
    monkeypatch.setitem(CHIPS, "v5e", CHIPS["v5e"]._replace(memory=1e4))
    lines = plan_drafters(jobs(), on, rules.token_v3, {}, None)
    assert not compiled and [line["fits"] for line in lines] == [False, False]
    assert capsys.readouterr().out.count("does not fit") == 2


@pytest.mark.parametrize(
    ("uri", "made", "sentence"),
    [
        (None, [eagle], "kinds of drafter with their brackets"),
        (["ngram://3"], [], "a table of drafters needs a model"),
        (["gemma2_2"], [], "gemma2_2b"),
        (["ngram://3+gemma2_2b"], [], "a look-up takes no pass that could be planned"),
        (["ngram://99"], [], "an n-gram drafter is written"),
        ("shipped://smollm2-135m-eagle", [], "reads hidden states of 576 numbers, and those of tiny have 32"),
        (None, [shallow(layers=(7,))], "shallow.layers must name some of the verifier's layers"),
    ],
)
def test_a_drafter_that_cannot_be_is_refused(uri, made, sentence):
    with pytest.raises(UserError, match=sentence):
        jobs(uri, made)
