"""Several processes, one program: what they must agree on, and that a text does not depend on how many there are."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
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
    hosts.agree({"a knob": "7"})
    assert hosts.lead(lambda: 3) == 3
    with pytest.raises(UserError, match="no such place"):
        hosts.lead(failing)


def failing():
    raise UserError("no such place")


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ([{"ALPHA": "0.1"}], ""),
        ([{"ALPHA": "0.1"}, {"ALPHA": "0.1"}], ""),
        (
            [{"ALPHA": "0.1"}, {"ALPHA": "0.1"}, {"ALPHA": "0.3"}],
            "differ in ALPHA (0.1 on host 0, 0.3 on host 2): give",
        ),
        ([{"--output": "given"}, {}], "differ in --output (given on host 0, not given on host 1): give"),
        ([{}, {"--output": "given"}], "differ in --output (not given on host 0, given on host 1): give"),
        ([{"STOP": "x" * 100}, {"STOP": "x"}], f"differ in STOP ({'x' * 59}… on host 0, x on host 1): give"),
        (
            [dict.fromkeys("abcde", "1"), {"b": "1"}],
            "differ in a (1 on host 0, not given on host 1), c (1 on host 0, not given on host 1), "
            "d (1 on host 0, not given on host 1) and 1 more: give",
        ),
    ],
)
def test_what_hosts_say_otherwise_is_named(facts, sentence):
    found = hosts.disagreement(facts)
    assert sentence in found and bool(found) == bool(sentence)


def test_a_command_may_differ_in_what_belongs_to_a_host(monkeypatch):
    said = []
    monkeypatch.setattr(hosts, "agree", said.append)
    for place in ("a", "b"):
        hosts.compare({"prompt": ["x"], "input": f"{place}/in", "output": f"{place}/out"}, {"ALPHA": "0.1"})
    assert said == [{"--prompt": "['x']", "--input": "given", "--output": "given", "ALPHA": "0.1"}] * 2


def test_who_is_not_one_of_several_joins_nobody(monkeypatch):
    monkeypatch.setattr(hosts, "join", pytest.fail)
    for given in ({}, {"distributed": False}):
        arguments = {**given, "prompt": ["x"]}
        hosts.join_by(arguments)
        assert arguments == {"prompt": ["x"]}


def test_the_first_process_is_a_number_too(monkeypatch):
    monkeypatch.setattr(hosts, "join", lambda **given: pytest.fail(str(given)))
    with pytest.raises(pytest.fail.Exception, match=r"^\{'process': 0\}$"):
        hosts.join_by({"distributed": False, "process": 0})


def test_what_is_everywhere_comes_back_whole():
    tree = {"row": jnp.arange(3, dtype=jnp.int32), "key": jax.random.split(jax.random.key(1), 2)}
    placed = hosts.everywhere(tree, mesh_of(jax.devices()[:1], 1, 1))
    np.testing.assert_array_equal(hosts.whole(placed["row"]), [0, 1, 2])
    np.testing.assert_array_equal(jax.random.key_data(placed["key"]), jax.random.key_data(tree["key"]))


def test_several_processes_need_a_mesh(monkeypatch):
    monkeypatch.setattr(hosts, "several", lambda: True)
    with pytest.raises(UserError, match="several processes share a pair: set MESH"):
        PairSpec(verifier=ModelSpec(uri="some/where")).layouts(1)


def together(commands, environment, codes=None):
    """Runs one command per process at once; returns what each printed, once all have ended, by default well."""
    running = started(commands, environment)
    try:
        told = [process.communicate(timeout=1200) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, err), code in zip(running, told, codes or [0] * len(running), strict=True):
        assert process.returncode == code, err[-4000:]
    return told


def started(commands, environment):
    return [
        subprocess.Popen(each, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for each in commands
    ]


def coordinator() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def pair_of_hosts(files, *arguments, own=((), ())):
    """Returns the commands of two hosts that decode together; each has some arguments of its own."""
    joining = ["--gin.MESH=(1, 2)", f"--coordinator={coordinator()}", "--processes=2"]
    knobs = tiny.pair(files, METHOD="verifier_only", MAX_NEW_TOKENS=250, IGNORE_EOS=True, BATCH_SIZE=2)
    return [tiny.command(*knobs, *joining, *arguments, *others, f"--process={host}") for host, others in enumerate(own)]


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


def prompts(path, count, first=0):
    path.write_text("".join(json.dumps({"prompt": f"the {first + i}"}) + "\n" for i in range(count)))
    return f"--input={path}"


def test_hosts_with_different_commands_say_so_and_end(tiny_files, tmp_path):
    output = tmp_path / "answers.jsonl"
    own = ([f"--output={output}"], ["--gin.ALPHA=0.3"])
    commands = pair_of_hosts(tiny_files, "--prompt=the quick", own=own)
    told = together(commands, tiny.environment(tiny_files) | devices(1), codes=(2, 2))
    sentence = (
        "error: the hosts of this run differ in --output (given on host 0, not given on host 1), ALPHA (0.1 on host 0, "
        "0.3 on host 1): give each of them the same command and files\n"
    )
    assert [err for _, err in told] == [sentence] * 2
    assert not output.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("second", "sentences"),
    [
        ((4, 1), [r"differ in the prompts \(4 of checksum \w+ on host 0, 4 of checksum \w+ on host 1\): give"] * 2),
        ((5, 0), [r"differ in the prompts \(4 of checksum \w+ on host 0, 5 of checksum \w+ on host 1\): give"] * 2),
        (None, ["host 1 of this run could not go on, and says why", "cannot: No such file"]),
    ],
)
def test_hosts_with_different_files_say_so_and_end(tiny_files, tmp_path, second, sentences):
    files = [prompts(tmp_path / "0.jsonl", 4), f"--input={tmp_path / '1.jsonl'}"]
    if second:
        prompts(tmp_path / "1.jsonl", *second)
    commands = pair_of_hosts(tiny_files, own=[[each] for each in files])
    told = together(commands, tiny.environment(tiny_files) | devices(1), codes=(2, 2))
    for (_, err), sentence in zip(told, sentences, strict=True):
        assert re.search(sentence, err) and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_ends_one_host_ends_the_other_and_what_is_written_stays(tiny_files, tmp_path, number, victim):
    output = tmp_path / "answers.jsonl"
    commands = pair_of_hosts(tiny_files, prompts(tmp_path / "prompts.jsonl", 400), f"--output={output}")
    running = started(commands, tiny.environment(tiny_files) | devices(1))
    try:
        end = time.monotonic() + 600
        while not (output.exists() and output.read_bytes().count(b"\n") >= 2):
            assert time.monotonic() < end and all(process.poll() is None for process in running)
            time.sleep(0.02)
        running[victim].send_signal(number)
        errors = [process.communicate(timeout=60)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    ended, left, err = running[victim].returncode, running[1 - victim].returncode, errors[1 - victim]
    if number == signal.SIGTERM:
        assert (ended, left) == (143, 143), errors
        assert errors[victim].splitlines()[-1] == "terminated"
        assert err.splitlines()[-1] == f"error: host {victim} of this run was terminated"
    else:
        # Where the first host is gone, jax aborts the other at the same time, and may be first.
        assert left == 1 or (victim == 0 and left == -signal.SIGABRT), err
        assert f"error: host {victim} of this run is gone without a word" in err or "another task died" in err
    assert not any("Traceback" in err for err in errors)
    lines = tiny.lines(output)
    assert 2 <= len(lines) < 400 and all(line["stats"]["tokens_out"] == 250 for line in lines)


@pytest.mark.slow
def test_a_host_that_nobody_joins_says_so():
    script = "from cascades import ending, hosts\nhosts._JOINING = 3\nwith ending.told():\n    hosts.join('{}', 2, {})"
    for process in range(2):
        command = [sys.executable, "-c", script.format(coordinator(), process)]
        ((_, err),) = together([command], os.environ | devices(1) | {"PYTHONPATH": str(tiny.ROOT)}, codes=[2])
        assert err.startswith("error: the processes of this run could not be joined (nobody answered): leave")
