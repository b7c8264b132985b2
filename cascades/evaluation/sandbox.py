"""Runs a program that a language model wrote, and says whether it passed its own tests. As for HumanEval and MBPP.

A program has a process of its own, in which it may compute, use the standard library, start threads, and write files
into an empty folder. What it may not do is refused by the kernel of Linux, which asks for no privilege to do so and
makes no exception for root (`sandbox_walls`): seccomp refuses to make processes, to open sockets, to signal others and
to change modes, owners or limits; Landlock refuses files but Python's own, to read, and those in its folder; limits
bound memory, the size and number of open files, and CPU time. From here: a deadline, and bounds of what is in the
folder and of what it reports. As there are no other processes, none is left. If the caller is killed, so is the
process; its folder stays.

Not contained: CPU and memory within the limits; half a gigabyte of disk for as long as it runs, in files that it has
removed and holds open; what it reads of Python's library; bugs of the kernel.
Where Landlock is missing (Linux before 5.13, gVisor), a program may write no file, but may read what the user may.
Where seccomp is missing (macOS, other machines than x86_64 and aarch64), nothing runs unless `unsafe`: then only
Python's audit hooks refuse, which are no wall against a program that is meant to break out. On Windows nothing runs.

A program passes if it comes to its end: a token is shown then that it cannot reach by ordinary means (`sandbox_child`),
and not if it leaves earlier by whatever way. Tests in the same program as what they test cannot prove more: an answer
may be an object that is equal to everything.
"""

import contextlib
import functools
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from cascades import checks
from cascades.errors import UserError

__all__ = ["Outcome", "containment", "heed", "run_program", "run_programs"]

LEAST_MEMORY = 64 << 20  # in which Python starts
FOLDER_BYTES, FOLDER_FILES = 64 << 20, 1000  # what a program may write
REPORT_BYTES = 4096  # what is read of a process
REASON = 160  # characters of a reason
START = 60.0  # seconds in which Python starts, on a machine that has much to do
TICK = 0.1  # seconds between two looks at the folder

_WALLS = str(Path(__file__).with_name("sandbox_walls.py"))
_KEPT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME")  # without which some Pythons do not start
_heeded = threading.local()
_without = ""  # means that tests go without, with commas between them


class Outcome(NamedTuple):
    """What became of a program. reason: `passed`, `failed: …`, `timed out`, `out of memory`, `killed by …`."""

    passed: bool
    reason: str


def run_program(source: str, *, seconds: int | float = 10.0, memory: int = 1 << 30, unsafe: bool = False) -> Outcome:
    """Runs a program to its end or to a limit, as a module named `program` whose hashes have no random seed.

    It reads end of file from stdin, and nobody reads what it prints. A `__main__` guard is not entered, as in
    human_eval/execution.py of arXiv 2107.03374. It may have no processes but its own, and 64 threads
    (before Python 3.12 as many as have their stacks of 8 MB in the memory).

    Args:
      source: the answer and then its tests.
      seconds: it has by the clock. memory: its address space, in bytes.
      unsafe: run it even where the kernel does not contain it.

    Raises:
      UserError: it cannot be contained here, or Python does not start.
    """
    return _run(source, seconds, memory, unsafe, getattr(_heeded, "stop", None) or threading.Event())


def heed(stop: threading.Event) -> None:
    """From now on the programs that this thread runs are ended, as failed ones, as soon as `stop` is set."""
    _heeded.stop = stop


def run_programs(
    sources: Sequence[str],
    *,
    seconds: int | float = 10.0,
    memory: int = 1 << 30,
    workers: int | None = None,
    unsafe: bool = False,
) -> list[Outcome]:
    """Runs programs as `run_program` does, some at a time; returns what became of each, in order.

    Args:
      workers: how many at a time; one for each CPU if None.
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    checks.whole("workers", workers, 1)
    stop = threading.Event()
    with ThreadPoolExecutor(workers) as pool:
        try:
            return list(pool.map(lambda source: _run(source, seconds, memory, unsafe, stop), sources))
        except BaseException:  # Ctrl-C too, which only the main thread learns of
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@functools.cache
def containment() -> tuple[str, ...]:
    """Returns the means that hold on this machine, of `limits`, `landlock`, `seccomp` and `audit`."""
    with tempfile.TemporaryDirectory(prefix="cascades-") as folder:
        heard = _heard("", folder, 10.0, LEAST_MEMORY, True, threading.Event())
    return heard.means


class _Heard(NamedTuple):
    """What was heard of a process.

    means: that hold. ready: it began the program. said: what it reported after that. ended: why it had to be ended, or
    nothing. code: its exit code.
    """

    means: tuple[str, ...]
    ready: bool
    said: bytes
    ended: str
    code: int


def _run(source: str, seconds: int | float, memory: int, unsafe: bool, stop: threading.Event) -> Outcome:
    checks.positive("seconds", seconds)
    checks.whole("memory", memory, LEAST_MEMORY)
    checks.switch("unsafe", unsafe)
    token = secrets.token_hex(32)
    with tempfile.TemporaryDirectory(prefix="cascades-", ignore_cleanup_errors=True) as folder:
        heard = _heard(f"{token}\n{source}", folder, seconds, memory, unsafe, stop)
    if not heard.ready:
        if stop.is_set():
            return Outcome(False, heard.ended)
        if "seccomp" not in heard.means and not unsafe:
            raise UserError(
                "programs that a model wrote run where seccomp contains them, on Linux on x86_64 or aarch64, and not"
                " here: run them elsewhere, or with unsafe=True in a container of your own"
            )
        raise UserError(f"Python did not start (code {heard.code}) to run a program: give it more memory than {memory}")
    if secrets.compare_digest(heard.said, token.encode()):
        return Outcome(True, "passed")
    if heard.ended:
        return Outcome(False, heard.ended)
    return Outcome(False, _reason(heard.said.decode("utf-8", "replace"), heard.code))


def _reason(said: str, code: int) -> str:
    said = " ".join("".join(each if each.isprintable() else " " for each in said).split())
    if said.split(":")[0] == "MemoryError":
        return "out of memory"
    if said:
        said = f"failed: {said}"
        return said if len(said) <= REASON else f"{said[: REASON - 1]}…"
    if code == -signal.SIGXCPU:
        return "timed out"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
        return f"killed by signal {-code}"
    return f"failed: left with code {code} before its end"


def _heard(given: str, folder: str, seconds: int | float, memory: int, unsafe: bool, stop: threading.Event) -> _Heard:
    """Runs a process that reads `given`, and returns what was heard of it. It is gone then."""
    if os.name != "posix":
        raise UserError("programs that a model wrote run on Linux or, with unsafe=True, on macOS: run them there")
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    # Hashes decide in which order a set is printed: a score should not hang on it.
    environment = {"HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8", "PYTHONUTF8": "1", "PYTHONHASHSEED": "0"}
    environment["MALLOC_ARENA_MAX"] = "1"  # else glibc sets 64 MB of the memory aside for each thread
    python = getattr(sys, "_base_executable", sys.executable)  # not that of a virtual environment, which has packages
    limits = [str(os.getpid()), str(memory), str(float(seconds)), str(int(unsafe)), _without]
    with tempfile.TemporaryFile() as stdin:  # not a pipe, which would have to be filled while another is read
        stdin.write(given.encode("utf-8", "surrogatepass"))
        stdin.seek(0)
        process = subprocess.Popen(
            [python, "-s", "-S", "-P", "-B", _WALLS, *limits],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=environment | kept,
            start_new_session=True,
        )
        try:
            report, ended = _listen(process, folder, seconds, stop)
        finally:
            if unsafe:  # it may have made others
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            code = process.wait()
            assert process.stdout is not None
            process.stdout.close()
    means, _, rest = report.partition(b"\n")
    ready, _, said = rest.partition(b"\n")
    return _Heard(tuple(means.decode("ascii", "replace").split()), ready == b"ready", said, ended, code)


def _listen(process: subprocess.Popen, folder: str, seconds: int | float, stop: threading.Event) -> tuple[bytes, str]:
    """Returns what a process reports until it ends or must be ended, and why it must."""
    assert process.stdout is not None
    reader, report = process.stdout.fileno(), b""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    held, started, deadline = True, False, time.monotonic() + START
    while True:
        gone = process.poll() is not None  # before the last reading
        while held and poll.poll(0 if gone else 1000 * max(0.0, min(TICK, deadline - time.monotonic()))):
            piece = os.read(reader, REPORT_BYTES)
            report += piece
            held = piece != b""
            if len(report) > REPORT_BYTES:
                return report, "failed: wrote to the report of its harness"
            if not started and report.count(b"\n") >= 2:
                started, deadline = True, time.monotonic() + seconds
            if time.monotonic() >= deadline:
                break
        if gone:
            return report, ""
        if not held:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(min(TICK, max(0.0, deadline - time.monotonic())))
        if time.monotonic() >= deadline:
            return report, "timed out"
        if stop.is_set():
            return report, "interrupted"
        if _too_much(folder):
            return report, "failed: wrote too much to its folder"


def _too_much(folder: str) -> bool:
    number = size = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    size += 512 * entry.stat(follow_symlinks=False).st_blocks
                number += 1
                if number > FOLDER_FILES or size > FOLDER_BYTES:
                    return True
    except OSError:  # where it is unsafe, the program may have removed its folder
        return False
    return False
