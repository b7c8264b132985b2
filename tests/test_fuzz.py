"""Two thousand damaged, foreign and hostile files: each loads or is refused in one sentence.

No traceback, no hang, no memory by the word of a header, and nothing is opened outside the model's own folder. A
failure names its seeds and the command that repeats one.
"""

import json
import os
import random
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from fuzzing import bases, cases, mutations

ROOT = Path(__file__).resolve().parents[1]
WORKER = ROOT / "tests" / "fuzzing" / "worker.py"
CASES = 2000
_A_PROCESS = 500  # cases; what one leaks does not add up for ever
_SHOWN = 25


def work(folder: Path, first: int, count: int) -> list[dict]:
    """Runs cases in processes of their own; a process that dies is a fault of the case that it was at."""
    report = folder / f"report-{first}.jsonl"
    results: list[dict] = []
    at, end = first, first + count
    while at < end:
        command = [sys.executable, str(WORKER), f"--bases={folder / 'bases'}", f"--report={report}"]
        command += [f"--first={at}", f"--count={min(_A_PROCESS, end - at)}"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=ROOT, check=False)
        lines = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
        report.unlink(missing_ok=True)
        assert lines, done.stderr[-2000:]
        results += [line for line in lines if "faults" in line]
        if "faults" not in lines[-1]:
            died = f"the process ended with {done.returncode}: {done.stderr[-500:]}"
            results.append(lines[-1] | {"what": "?", "outcomes": {}, "faults": [died]})
        at = lines[-1]["seed"] + 1
    return results


def told(faulty: list[dict]) -> str:
    """What a failure says."""
    lines = (f"  {each['seed']} ({each['kind']}, {each['what']}): {each['faults'][0][:300]}" for each in faulty)
    repeat = f"python {WORKER.relative_to(ROOT)} --bases=/tmp/bases --report=/dev/stdout --first={faulty[0]['seed']}"
    return "\n".join(
        [f"{len(faulty)} seeds have faults, of which:", *islice(lines, _SHOWN), f"repeat the first with: {repeat}"]
    )


@pytest.mark.slow
def test_whatever_the_files_hold_they_load_or_end_in_one_sentence(tmp_path):
    results = work(tmp_path, 0, CASES)
    assert sorted(each["seed"] for each in results) == list(range(CASES))
    faulty = [each for each in results if each["faults"]]
    assert not faulty, told(faulty)
    by_kind = {kind: [each["outcomes"] for each in results if each["kind"] == kind] for kind in cases.SHARES}
    for kind, outcomes in by_kind.items():  # mutations that all load, or all fail, would find little
        whole = [each for each in outcomes if set(each.values()) == {"ok"}]
        assert 0.03 < len(whole) / len(outcomes) < 0.97, (kind, len(whole), len(outcomes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two cases and the bases lie."""
    folder = tmp_path_factory.mktemp("fuzz")
    work(folder, 0, 2)
    return folder


def test_the_bases_themselves_load(folder):
    sys_path = f"sys.path[:0] = [{str(ROOT / 'tests' / 'fuzzing')!r}]"
    names = [*bases.CONFIGS, "llama.gguf", "gemma3.gguf", "ours"]
    program = (
        f"import sys; {sys_path}; import worker; from pathlib import Path; from fuzzing.cases import Case\n"
        f"for name in {names}:\n"
        f"    print(name, worker._attempts(Case(0, 'config', name, Path({str(folder / 'bases')!r}) / name)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    lines = done.stdout.splitlines()
    assert len(lines) == len(names)
    for line in lines:
        assert line.endswith(", [])") and "'load': 'ok'" in line and "'encode': 'ok'" in line, line
        assert "should" not in line and "refused" not in line, line


# What a loading that is at fault might do, and what must be said of it.
PLANTED = (
    ("raise KeyError('x')", "KeyError: 'x'"),
    ("raise UserError('one\\ntwo')", "no one sentence"),
    ("time.sleep(60)", "took more than 8 s"),
    ("np.ones(9 * 2**24)", "GiB of memory"),
    ("np.empty(2**40)", "MemoryError"),
    ("open('/etc/hostname')", "opened /etc/hostname"),
    ("safetensors.safe_open('/etc/hostname', framework='np')", "opened /etc/hostname"),
    ("open(path.parents[1] / 'outside' / 'model.safetensors')", "outside/model.safetensors"),
    ("open(path if path.is_file() else path / 'config.json')", None),
    ("os.kill(os.getpid(), signal.SIGSEGV)", "the process ended with"),
)


def test_a_planted_fault_is_found(folder, monkeypatch, tmp_path):
    """The worker around a loading that does, one case after the other, what no loading should."""
    planted = tmp_path / "planted.py"
    planted.write_text(
        f"import contextlib, os, signal, sys, time\nsys.path.insert(0, {str(ROOT / 'tests' / 'fuzzing')!r})\n"
        "import numpy as np, safetensors, worker\nfrom worker import UserError\n"
        "worker.SECONDS, worker.BYTES = 8, 2**30\n"
        f"programs = [''] * len(worker.WARM) + {[program for program, _ in PLANTED]}\n"
        "def load(path, **_):\n"
        "    with contextlib.suppress(OSError, safetensors.SafetensorError):\n        exec(programs.pop(0))\n"
        "worker.checkpoints.load = load\nworker.main()\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "WORKER", planted)
    seeds = [seed for seed in range(100) if cases.kind_of(seed) != "jsonl"]
    results = work(folder, 0, seeds[len(PLANTED) - 1] + 1)
    for (program, fault), result in zip(PLANTED, (results[seed] for seed in seeds), strict=False):
        # The outcome of `load` is made up here, and `inspect` may well see it otherwise.
        faults = [each for each in result["faults"] if "load" in each or "opened" in each or "took" in each]
        faults += [each for each in result["faults"] if "process" in each]
        faults = [each for each in faults if not each.startswith("inspect")]
        assert (not faults) if fault is None else any(fault in each for each in faults), (program, result)


def test_a_seed_is_the_same_case_every_time(folder, tmp_path):
    for seed in range(60):
        made = [cases.make(seed, folder / "bases", tmp_path / "case") for _ in range(2)]
        files = [sorted((path.name, path.read_bytes()) for path in (tmp_path / "case").rglob("*") if path.is_file())]
        cases.make(seed, folder / "bases", tmp_path / "again")
        files += [sorted((path.name, path.read_bytes()) for path in (tmp_path / "again").rglob("*") if path.is_file())]
        assert made[0] == made[1] and files[0] == files[1]


def test_the_fields_of_a_gguf_header_are_all_found(folder):
    data = (folder / "bases" / "llama.gguf").read_bytes()
    fields, head = cases.gguf_fields(data)
    assert data[head - 24 : head].count(b"\0") > 8 and head < len(data)
    assert data.find(b"general.architecture") - 8 in {offset for offset, _ in fields}
    assert len({mutations.lie(random.Random(seed), data, fields) for seed in range(40)}) > 30


def test_the_kinds_have_their_shares():
    counts = {kind: 0 for kind in cases.SHARES}
    for seed in range(CASES):
        counts[cases.kind_of(seed)] += 1
    assert counts == {kind: share * CASES // 100 for kind, share in cases.SHARES.items()}


def test_workers_leave_no_bases_behind_but_their_own(folder):
    assert {path.name for path in folder.iterdir()} == {"bases"}
    assert os.listdir(folder / "bases" / cases.OUTSIDE) == ["model.safetensors"]
