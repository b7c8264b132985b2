"""How a run ends: codes and lines, SIGTERM, and the word of other hosts."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from cascades import ending
from cascades.errors import Unanswered, UserError

ROOT = Path(__file__).resolve().parents[1]


def failing(error):
    with ending.told():
        raise error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("no such knob"), 2, "error: no such knob\n"),
        (UserError("no such knob\n  In call to configurable 'decode'"), 2, "error: no such knob\n"),
        (Unanswered("told already", []), 2, ""),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (ending.Terminated(), 143, "terminated\n"),
        (SystemExit(7), 7, ""),
    ],
)
def test_a_code_and_a_line(error, code, line, capsys):
    with pytest.raises(SystemExit) as stop:
        failing(error)
    assert stop.value.code == code
    assert capsys.readouterr().err == line


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        failing(ZeroDivisionError())


def test_sigterm_is_an_interrupt_of_the_body_alone():
    before, ended = signal.getsignal(signal.SIGTERM), []
    with pytest.raises(SystemExit) as stop, ending.told():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            ended.append("file")
    assert stop.value.code == 143 and ended == ["file"]
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_sigterm_ends_a_main_thread_that_hangs_outside_of_python():
    # A mutex that is locked twice waits for ever, whatever signal comes.
    script = """
        import ctypes
        from cascades import ending
        ending.GRACE = 0.2
        with ending.told():
            lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
            print("ready", flush=True)
            lock(mutex)
            lock(mutex)
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        try:
            assert process.communicate(timeout=60)[1] == "terminated\n"
        finally:
            process.kill()
    assert process.returncode == 143


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_wait_where_they_are_postponed(number):
    expected = {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    steps = []
    with pytest.raises(SystemExit) as stop, ending.told(), ending.postponed() as came:
        for step in range(3):
            if step == 1:
                os.kill(os.getpid(), number)
            steps.append((step, came()))
        ending.interrupt(came())
    assert steps == [(0, 0), (1, number), (2, number)]
    assert stop.value.code == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_within_a_callback_is_not_lost(number):
    # Python reports what a callback of the search for garbage raises, and goes on.
    expected = {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    signals = [number]

    def callback(phase, info):
        del phase, info
        if signals:
            os.kill(os.getpid(), signals.pop())

    hook, before = sys.unraisablehook, signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup ignores it
    gc.callbacks.append(callback)
    try:
        with pytest.raises(SystemExit) as stop, ending.told():
            end = time.monotonic() + 60
            while time.monotonic() < end:
                gc.collect()
                time.sleep(0.1)  # a run does other things as well
    finally:
        gc.callbacks.remove(callback)
        signal.signal(signal.SIGINT, before)
    assert stop.value.code == expected and not signals
    assert sys.unraisablehook is hook


def test_a_second_signal_does_not_wait():
    with pytest.raises(ending.Terminated), ending.postponed():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)


class Left(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def others(monkeypatch):
    """Another host that is never heard of; returns what it is told. The process does not end."""
    told = []

    def end(code):
        ending._last.release()
        raise Left(code)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(ending, "_others", None)
    ending.together(
        ending.Others(1, lambda *word: told.append(word), lambda seconds: None, lambda: told.append("finished"))
    )
    return told


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (UserError("no such knob"), (2, "host 1 of this run could not go on, and says why")),
        (ending.Terminated(), (143, "host 1 of this run was terminated")),
        (KeyboardInterrupt(), (130, "host 1 of this run was interrupted")),
        (SystemExit(1), (1, "host 1 of this run failed, and says why")),
    ],
)
def test_other_hosts_are_told(others, error, word):
    with pytest.raises(Left) as left:
        failing(error)
    assert left.value.args == (word[0],) and others == [word]


def test_a_run_that_went_well_waits_for_the_others(others):
    with ending.told():
        pass
    assert others == ["finished"]


def test_what_follows_from_the_end_of_another_host_is_no_bug(others, monkeypatch, capsys):
    with pytest.raises(Left) as left:
        failing(ValueError("Connection closed by peer"))
    assert left.value.args == (1,) and "Traceback" in capsys.readouterr().err  # nobody else has ended
    monkeypatch.setattr(
        ending, "_others", ending._others._replace(heard=lambda seconds: (143, "host 0 of this run was terminated"))
    )
    with pytest.raises(Left) as left:
        failing(ValueError("Connection closed by peer"))
    assert left.value.args == (143,) and capsys.readouterr().err == "error: host 0 of this run was terminated\n"
