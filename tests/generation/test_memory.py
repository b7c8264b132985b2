"""What an engine has learnt is there in the next run, and only where it fits."""

import json

import jax
import numpy as np
import pytest
import tiny

from cascades import rules
from cascades.generation import Settings, Shapes, build, clock, complete, costs, load_pair, memory, queries
from cascades.lookahead import heuristic

SHAPES = Shapes(2, 128)


@pytest.fixture(scope="module")
def pair(tiny_files):
    return load_pair(tiny.specs(verifier=tiny_files.verifier, drafter=tiny_files.drafter)["pair"])


def engine_of(pair, folder, **knobs):
    knobs = {"rule": rules.lossless, "k_max": 3, "max_new_tokens": 24, "context": 128} | knobs
    return build(pair, Settings(batch_size=2, ignore_eos=True, **knobs), memory=folder)


def answers(engine):
    return complete(engine, queries(engine, ["the quick", "a small model"]), rounds=1, shapes=SHAPES)


@pytest.fixture(scope="module")
def kept(pair, tmp_path_factory):
    """A folder, and the engine whose knowledge is in it."""
    folder = tmp_path_factory.mktemp("cache") / "learnt"
    engine = engine_of(pair, folder)
    answers(engine)
    return folder, engine


def unmeasured(monkeypatch):
    def refuse(*_):
        raise AssertionError("measured")

    monkeypatch.setattr(costs, "measure_costs", refuse)


def test_the_next_run_begins_with_what_was_learnt_and_measures_nothing(pair, kept, monkeypatch):
    folder, first = kept
    before = first.compiled[SHAPES].belief
    unmeasured(monkeypatch)
    engine = engine_of(pair, folder)
    compiled = costs.programs_for(engine, SHAPES, (1, 2, 3))
    np.testing.assert_array_equal(compiled.belief.seconds, clock.in_order(before))
    assert compiled.belief.call == before.call and not compiled.belief.given
    assert {at for _, at in compiled.reached} == {
        0,
        1,
    }  # each pass has run once: the first request need not wait for it
    for old, new in zip(jax.tree.leaves(first.learnt[0]), jax.tree.leaves(engine.learnt[0]), strict=True):
        np.testing.assert_array_equal(old, new)
        assert old.dtype == new.dtype
    assert float(engine.learnt[0].judged.sum()) > 2.0  # more than the prior: drafts have been judged
    assert [each.token_ids for each in answers(engine)] == [each.token_ids for each in answers(first)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda told: "",
        lambda told: json.dumps([]),
        lambda told: json.dumps(told | {"seconds": told["seconds"][1:]}),
        lambda told: json.dumps(told | {"seconds": [0.0, *told["seconds"][1:]]}),
        lambda told: json.dumps(told | {"seconds": [float("nan"), *told["seconds"][1:]]}),
        lambda told: json.dumps(told | {"learnt": told["learnt"][1:]}),
        lambda told: json.dumps(told | {"learnt": [[*each, 0] for each in told["learnt"]]}),
        lambda told: json.dumps(told | {"call": "short"}),
        lambda told: json.dumps({"seconds": told["seconds"], "call": told["call"]}),
    ],
)
def test_what_does_not_fit_is_measured_anew(pair, kept, tmp_path, damage):
    (file,) = kept[0].iterdir()
    (tmp_path / file.name).write_text(damage(json.loads(file.read_text())))
    engine = engine_of(pair, tmp_path)
    assert memory.recall(engine, kept[1].compiled[SHAPES]) is None
    assert engine.learnt == []
    (tmp_path / file.name).write_text(file.read_text())
    assert memory.recall(engine, kept[1].compiled[SHAPES]) is not None


@pytest.mark.parametrize(
    "other",
    [{"k_max": 2}, {"rule": rules.lossy}, {"coupling": "gumbel"}, {"lookahead": heuristic()}],
    ids=["k_max", "rule", "coupling", "lookahead"],
)
def test_another_plan_is_another_engine(pair, kept, other):
    engine = engine_of(pair, kept[0], **other)
    assert memory.recall(engine, kept[1].compiled[SHAPES]) is None


def test_another_shape_is_too(pair, kept):
    compiled = kept[1].compiled[SHAPES]
    other = compiled.__class__(**{**vars(compiled), "shapes": Shapes(1, 128)})
    assert memory.recall(kept[1], compiled) is not None and memory.recall(kept[1], other) is None


def test_given_costs_are_neither_kept_nor_overruled(pair, kept, tmp_path):
    given = {"costs": (0.25, (1.0, 1.1, 1.1, 1.2))}
    engine = engine_of(pair, kept[0], **given)
    compiled = costs.programs_for(engine, SHAPES, (1, 2, 3))
    assert compiled.belief.given and engine.learnt == []
    answers(engine_of(pair, tmp_path, **given))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_costs_the_answers_nothing(pair, tmp_path):
    (tmp_path / "file").write_text("")
    assert all(each.error is None for each in answers(engine_of(pair, tmp_path / "file" / "learnt")))


def test_decode_keeps_what_it_learnt_for_its_next_run(tiny_files, tmp_path, monkeypatch):
    monkeypatch.setenv("CASCADES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("cascades.runs.decode.compilation_cache", lambda: None)  # it outlives a test
    knobs = tiny.pair(tiny_files, COSTS=None, K_MAX=2, MAX_NEW_TOKENS=16, IGNORE_EOS=True)
    texts = ("--prompt=the quick", "--prompt=a small model")
    assert tiny.launch(*knobs, *texts, f"--output={tmp_path}/first.jsonl") == 0
    (file,) = (tmp_path / "cache" / "learnt").iterdir()
    unmeasured(monkeypatch)
    assert tiny.launch(*knobs, *texts, f"--output={tmp_path}/second.jsonl") == 0
    first, second = (tiny.lines(tmp_path / f"{name}.jsonl") for name in ("first", "second"))
    assert {line["prompt"]: line["token_ids"] for line in first} == {
        line["prompt"]: line["token_ids"] for line in second
    }
    assert json.loads(file.read_text())["seconds"]
