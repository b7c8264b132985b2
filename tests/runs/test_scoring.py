"""Scores of answers while others are decoded: in threads, whatever fails, and where the run is interrupted."""

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rich.console import Console

from cascades.errors import UserError
from cascades.evaluation.sandbox import run_program
from cascades.evaluation.tasks.contract import Metric, Task
from cascades.runs import scoring as module
from cascades.runs.scoring import scoring
from cascades.runs.work import Run, Work, appending, file_task

PATIENCE = 60  # seconds


def task(statistics, name="words"):
    metric = Metric("own", "A test.", statistics, lambda sums: float(sums[0]))
    return Task(name, "A test.", list, (metric,), (), 1, True)


def answer(at, text="yes", task="words"):
    return {"task": task, "rule": "chow", "alpha": 0.5, "prompt_id": at, "input": {}, "text": text, "scores": None}


def console():
    return Console(file=io.StringIO(), width=200)


def passes(record, text):
    return (float(run_program(text, seconds=PATIENCE).passed),)


def children():
    """Of all threads of this process."""
    files = Path("/proc/self/task").glob("*/children")
    return sorted(child for file in files for child in file.read_text().split())


def test_a_slow_score_holds_nothing_up_and_each_is_kept_as_soon_as_it_is_known():
    taken, kept, lines = threading.Event(), threading.Event(), []

    def statistics(record, text):
        assert text == "quick" or taken.wait(PATIENCE)
        return (float(len(text)),)

    def keep(line):
        lines.append(line)
        kept.set()

    with scoring([task(statistics)], keep, console()) as take:
        take(answer(0, "slow"))
        if module.WORKERS > 1:  # before the slow one is known, and before the body has ended
            take(answer(1, "quick"))
            assert kept.wait(PATIENCE) and [line["prompt_id"] for line in lines] == [1]
        taken.set()
    assert {line["prompt_id"]: line["scores"] for line in lines}[0] == {"own": [4.0]}


def test_answers_that_wait_are_bounded(monkeypatch):
    monkeypatch.setattr(module, "WAITING", 3)
    go, taken = threading.Event(), []

    def statistics(record, text):
        assert go.wait(PATIENCE)
        return (1.0,)

    def body(lines):
        with scoring([task(statistics)], lines.append, console()) as take:
            for at in range(5):
                take(answer(at))
                taken.append(at)

    lines = []
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(body, lines)
        while len(taken) < 3:
            time.sleep(0.01)
        time.sleep(0.1)
        assert taken == [0, 1, 2] and not lines
        go.set()
        done.result(PATIENCE)
    assert sorted(line["prompt_id"] for line in lines) == [0, 1, 2, 3, 4]


def test_a_score_of_the_users_own_is_called_in_the_main_thread_and_fails_alone():
    threads, lines, err = [], [], console()

    def score(record, text):
        threads.append(threading.current_thread())
        return 1 / len(text)

    with scoring([file_task(score)], lines.append, err) as take:
        for at, text in enumerate(("yes", "", "no")):
            take(answer(at, text, task=""))
            assert len(lines) == at + 1
    assert set(threads) == {threading.main_thread()}
    assert [line["scores"] for line in lines] == [{"score": [1 / 3, 1.0]}, None, {"score": [0.5, 1.0]}]
    assert "1 with chow 0.5 has no score: ZeroDivisionError" in err.file.getvalue()  # pyright: ignore


def test_what_fails_in_a_thread_costs_its_answer_and_what_ends_a_run_ends_it():
    def statistics(record, text):
        if text == "ends":
            raise UserError("nothing can be scored here")
        return (1 / len(text),)

    lines, err = [], console()
    with scoring([task(statistics)], lines.append, err) as take:
        take(answer(0, ""))
        take(answer(1, "yes"))
    assert {line["prompt_id"]: line["scores"] for line in lines} == {0: None, 1: {"own": [1 / 3]}}
    assert "0 with chow 0.5 has no score: ZeroDivisionError" in err.file.getvalue()
    with pytest.raises(UserError, match="nothing can be scored here"):
        with scoring([task(statistics)], lines.append, err) as take:
            take(answer(2, "ends"))

    def full(line):
        raise UserError("the disk is full")

    with pytest.raises(UserError, match="the disk is full"):
        with scoring([task(statistics)], full, err) as take:
            take(answer(3))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="children are listed by Linux")
def test_an_interrupt_ends_programs_and_keeps_what_has_its_score(tmp_path):
    before, lines = children(), []
    path, kept = tmp_path / "results.jsonl", threading.Event()
    with appending(Run({}, Work([], [], []), {}, "a run", tmp_path, lines)) as write:

        def keep(line):
            write(line)
            kept.set()

        with pytest.raises(KeyboardInterrupt):
            with scoring([task(passes)], keep, console()) as take:
                take(answer(0, "1 + 1"))
                assert kept.wait(PATIENCE)
                for at in range(1, 9):  # some run, the others wait
                    take(answer(at, "while True: pass"))
                began = time.monotonic()
                while len(children()) == len(before) and time.monotonic() - began < PATIENCE:
                    time.sleep(0.01)
                began = time.monotonic()
                raise KeyboardInterrupt
    assert time.monotonic() - began < module.GRACE and children() == before
    assert [(line["prompt_id"], line["scores"]) for line in lines] == [(0, {"own": [1.0]})]
    text = path.read_text()
    assert text.count("\n") == 1 and text.endswith("\n")
