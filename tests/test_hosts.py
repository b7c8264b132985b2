"""Several processes, one program: what they must agree on, and that a text does not depend on how many there are."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from cascades import hosts
from cascades.errors import UserError
from cascades.generation import ModelSpec, PairSpec
from cascades.sharding import mesh_of

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("localhost:1", None, None), "give --processes and --process too"),
        ((None, 2, 0), "give --coordinator too"),
        (("localhost:1", 2, 2), "--process must be from 0 to 1 of --processes, not 2"),
        (("localhost:1", 0, 0), "--process must be from 0 to 0 of --processes, not 0"),
        (("localhost", 2, 0), "--coordinator must be HOST:PORT"),
        ((None, None, None), "could not be joined"),  # a backend is up already, and nothing around tells of others
    ],
)
def test_who_cannot_join_is_told(arguments, sentence):
    jax.devices()
    with pytest.raises(UserError, match=sentence):
        hosts.join(*arguments)


def test_one_process_agrees_with_itself():
    assert hosts.leads() and not hosts.several()
    assert hosts.agreed(np.float32(0.5)) == 0.5
    hosts.alike(7, "prompts")
    assert hosts.lead(lambda: 3) == 3
    with pytest.raises(UserError, match="no such place"):
        hosts.lead(failing)


def failing():
    raise UserError("no such place")


def test_what_is_everywhere_comes_back_whole():
    tree = {"row": jnp.arange(3, dtype=jnp.int32), "key": jax.random.split(jax.random.key(1), 2)}
    placed = hosts.everywhere(tree, mesh_of(jax.devices()[:1], 1, 1))
    np.testing.assert_array_equal(hosts.whole(placed["row"]), [0, 1, 2])
    np.testing.assert_array_equal(jax.random.key_data(placed["key"]), jax.random.key_data(tree["key"]))


def test_several_processes_need_a_mesh(monkeypatch):
    monkeypatch.setattr(hosts, "several", lambda: True)
    with pytest.raises(UserError, match="several processes share a pair: set MESH"):
        PairSpec(verifier=ModelSpec(uri="some/where")).layouts(1)


def together(commands, environment):
    """Runs one command per process at once; returns what each printed, once all have ended well."""
    running = [
        subprocess.Popen(each, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for each in commands
    ]
    try:
        told = [process.communicate(timeout=1200) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, err) in zip(running, told, strict=True):
        assert process.returncode == 0, err[-4000:]
    return told


def coordinator() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def devices(count):
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}


@pytest.mark.slow
def test_a_text_does_not_depend_on_the_number_of_processes():
    command, found = [sys.executable, str(HERE / "mesh_decode.py")], {}
    names = ["4 model", "4 fsdp", "4 data"]
    for count in (1, 2, 4):
        at = coordinator()
        joined = [[f"--join={at},{count},{each}"] if count > 1 else [] for each in range(count)]
        told = together([[*command, *join, *names] for join in joined], os.environ | devices(4 // count))
        outcomes = [json.loads(out.splitlines()[-1]) for out, _ in told]
        assert all(outcome == outcomes[0] for outcome in outcomes)
        found[count] = outcomes[0]
    alone = found[1]["4 model"]["tokens"]
    assert len({tuple(row) for row in alone}) == 4
    for outcome in found.values():
        assert [outcome[name]["tokens"] for name in names] == [alone] * len(names)


@pytest.mark.slow
def test_the_launcher_decodes_in_two_processes_and_the_first_one_writes(tiny_files, tmp_path):
    knobs = tiny.pair(tiny_files, MAX_NEW_TOKENS=16, BATCH_SIZE=2, K_MAX=2)
    prompts = ["--prompt=the quick", "--prompt=a small model"]
    environment = tiny.environment(tiny_files)

    alone = tmp_path / "alone.jsonl"
    together([tiny.command(*knobs, *prompts, f"--output={alone}")], environment)
    at = coordinator()
    commands = [
        tiny.command(
            *knobs,
            *prompts,
            "--gin.MESH=(1, 2)",
            "--distributed",
            f"--coordinator={at}",
            "--processes=2",
            f"--process={each}",
            f"--output={tmp_path / f'{each}.jsonl'}",
        )
        for each in range(2)
    ]
    first, second = together(commands, environment | devices(1))
    answers = [
        {line["prompt"]: line["token_ids"] for line in tiny.lines(path)} for path in (alone, tmp_path / "0.jsonl")
    ]
    assert answers[0] == answers[1] and len(answers[0]) == 2
    assert "the quick" in first[0] and "tok/s" in first[1]
    assert not [line for line in second[0].splitlines() if line and "Gloo" not in line]  # which gloo itself prints
    assert not (tmp_path / "1.jsonl").exists()


@pytest.mark.slow
def test_each_of_four_processes_holds_a_quarter_of_a_large_checkpoint(tmp_path):
    # 2 GB in bfloat16, shaped like Gemma 2 2B with fewer layers; written once, read by four processes.
    script = str(HERE / "mesh_load.py")
    subprocess.run([sys.executable, script, "write", str(tmp_path)], check=True, timeout=600)
    at = coordinator()
    told = together(
        [[sys.executable, script, "load", str(tmp_path), at, str(each)] for each in range(4)], os.environ | devices(1)
    )
    for out, _ in told:
        figures = json.loads(out.splitlines()[-1])
        assert figures["total"] > 1.9e9
        assert figures["held"] < 0.26 * figures["total"]
        assert figures["peak"] < 0.26 * figures["total"] + 0.3e9, figures  # and a tensor at a time on each thread
