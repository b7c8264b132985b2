"""What a machine is called, and what is done to its memory."""

import jax.numpy as jnp
import pytest

from cascades.runs import machine


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ("processor\t: 0\nmodel\t\t: 207\nmodel name\t: Some(R) CPU @ 2 GHz\n", "Some(R) CPU @ 2 GHz"),
        ("processor\t: 0\nModel\t\t: Raspberry Pi 5\n", "Raspberry Pi 5"),
    ],
)
def test_a_processor_goes_by_its_name(monkeypatch, tmp_path, cpuinfo, name):
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setenv("CASCADES_CPUINFO", str(tmp_path / "cpuinfo"))
    assert machine.described(jnp.bfloat16)["processor"] == name


def test_a_machine_that_says_nothing_still_has_a_name():
    about = machine.described(jnp.float32)
    assert about["processor"] and about["cores"] >= 1 and about["dtype"] == "float32" and "cpu" in about["device"]


def test_memory_is_read_at_some_speed():
    assert 1 << 28 <= machine.beyond_caches() <= 1 << 30
    read, update, near = machine.memory(1 << 20, 1 << 18)
    assert (read.moved, update.moved, near.moved) == (1 << 20, 2 << 20, 1 << 18)
    for each in (read, update, near, update):
        assert 0 < each.run() < 10
