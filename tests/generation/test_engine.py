"""What an engine compiles: the widths of its verifier's passes, and what it keeps for the next run."""

import gc

import jax
import pytest
import tiny

from cascades import lookahead, rules
from cascades.generation import Settings, Shapes, build, load_pair, programs
from cascades.generation import engine as engines


@pytest.mark.parametrize(("dtype", "widths"), [("float32", (1, 9)), ("bfloat16", (1, 3, 5, 9))])
def test_a_narrow_pass_is_compiled_where_it_takes_less(tiny_files, dtype, widths, monkeypatch):
    pair = load_pair(tiny.specs(verifier=tiny_files.verifier, drafter=tiny_files.drafter, dtype=dtype)["pair"])
    settings = Settings(rule=rules.lossless, lookahead=lookahead.fixed(3), k_max=8)
    assert build(pair, settings).programs.plan.passes == widths
    assert build(pair, settings, tokens=64).programs.plan.passes == (1, 9)
    assert build(pair, settings, tokens=64000).programs.plan.passes == widths
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert build(pair, settings).programs.plan.passes == (1, 9)


@pytest.mark.parametrize("collects", [True, False])
def test_garbage_is_collected_again_after_compiling_as_it_was_before(tiny_files, collects, monkeypatch):
    pair = load_pair(tiny.specs(verifier=tiny_files.verifier, drafter=tiny_files.drafter)["pair"])
    engine = build(pair, Settings(rule=rules.lossless, lookahead=lookahead.fixed(1), k_max=1))
    seen = []

    def start(*_):
        seen.append(gc.isenabled())
        raise RuntimeError

    monkeypatch.setattr(engines, "_start", start)
    before = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        with pytest.raises(RuntimeError):
            engines.compile_for(engine, Shapes(1, 256), 4)
        assert seen and not any(seen) and gc.isenabled() is collects
    finally:
        (gc.enable if before else gc.disable)()


@pytest.fixture
def flags():
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_every_program_is_kept_unless_the_user_has_a_place_for_them(flags, monkeypatch, tmp_path):
    monkeypatch.setenv("CASCADES_CACHE", str(tmp_path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    programs.compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 1.0
    jax.config.update("jax_compilation_cache_dir", None)
    programs.compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compiled")
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.0
