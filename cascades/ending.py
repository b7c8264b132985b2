"""How a run ends: in one line and an exit code, whatever ends it, and on all of its hosts.

The code is 0 after a run that went well, 2 after a `UserError`, 130 after Ctrl-C and 143 after SIGTERM; a host that
ends because of another has the code of that one, or 1 where the other is gone.
"""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import NamedTuple, NoReturn

from cascades.errors import Unanswered, UserError

GRACE = 10.0  # seconds that a main thread which is told to end has for it, before the process ends without it
AGAIN = 0.01  # seconds after which a signal that was lost is sent again
_ENDED = {2: "could not go on, and says why", 130: "was interrupted", 143: "was terminated"}


class Terminated(KeyboardInterrupt):
    """SIGTERM, which is an interrupt to everything but the exit code."""


class Others(NamedTuple):
    """The other hosts of a run.

    host: which one this is. tell: `(code, words)`, says to all of them how this host ends; it may be gone then.
    heard: `seconds -> (code, words)` of one that ended early, for which it waits so long, or None.
    finish: returns once all of them have come to the end of their run.
    """

    host: int
    tell: Callable[[int, str], None]
    heard: Callable[[float], tuple[int, str] | None]
    finish: Callable[[], None]


_others: Others | None = None
_last = threading.Lock()  # who holds it ends the process
_handled = threading.Event()  # the main thread knows of the last SIGTERM
_patient = threading.Event()  # it may take its time to learn of one


def together(others: Others) -> None:
    """From now on this host ends with others."""
    global _others
    _others = others


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Ends a run: what ends its body early is told in one line on stderr, and decides the exit code.

    Of `Unanswered` the run has told. Any other exception is a bug and keeps its traceback, unless another host of the
    run has ended, of which it is then a consequence.

    Raises:
      SystemExit: with the code. Where there are other hosts the process ends without it.
    """
    try:
        with _terminations():
            yield
            if _others is not None:
                _others.finish()
        return
    except Unanswered:
        code, line = 2, ""
    except UserError as error:
        sentence = str(error).split("\n  In call to configurable ")[0]  # gin adds such lines on the way up
        code, line = 2, f"error: {sentence}"
    except Terminated:
        code, line = 143, "terminated"
    except KeyboardInterrupt:
        code, line = 130, "interrupted"
    except SystemExit as stop:
        if _others is None:
            raise
        code, line = stop.code if isinstance(stop.code, int) else 1, ""
    except Exception:
        if _others is None:
            raise
        heard = _others.heard(GRACE / 2)
        code, line = (heard[0], f"error: {heard[1]}") if heard else (1, traceback.format_exc())
    if _others is not None:
        leave(code, line)
    if line:
        print(line, file=sys.stderr)
    raise SystemExit(code)


def leave(code: int, line: str) -> NoReturn:
    """Ends the process at once, from any thread, after one line on stderr and a word to the other hosts.

    A thread that comes second waits here for the end.
    """
    _last.acquire()
    try:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it
            print(line, end="\n" if line else "", file=sys.stderr, flush=True)
        if _others is not None:
            _others.tell(code, f"host {_others.host} of this run {_ENDED.get(code, 'failed, and says why')}")
        sys.stdout.flush()
    finally:
        # Not `sys.exit`: on its way out jax would wait for hosts that do not come, and abort.
        os._exit(code)


@contextlib.contextmanager
def postponed() -> Iterator[Callable[[], int]]:
    """Holds Ctrl-C and SIGTERM back; yields a function that returns the number of the one that came, or 0.

    A second one does not wait. Hand the number to `interrupt` where the run may end.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return

    def note(number, frame):
        del frame
        _handled.set()
        if came:
            interrupt(number)
        came.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    _patient.set()
    try:
        yield lambda: came[0] if came else 0
    finally:
        _patient.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupt(number: int) -> NoReturn:
    """Raises what a signal stands for."""
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


@contextlib.contextmanager
def _terminations() -> Iterator[None]:
    """Lets SIGTERM raise `Terminated` in the main thread, and sees to it that no signal is lost.

    Python runs a handler once the main thread is back from what it called; a program that waits for another host, or
    a compiler, may not come back. The number of a signal is written to a pipe at once, which a thread reads, and ends
    the process where the main thread does not learn of it. What a handler raises is lost where it interrupts a
    callback whose errors Python only reports, such as jax's at every search for garbage: the signal is sent again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number, frame):
        del frame
        _handled.set()
        interrupt(number)

    _handled.clear()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def report(lost):
        if not isinstance(lost.exc_value, KeyboardInterrupt):
            hook(lost)
            return
        number = signal.SIGTERM if isinstance(lost.exc_value, Terminated) else signal.SIGINT
        # Later, and by another thread, as the main thread is still inside of the callback.
        again = threading.Timer(AGAIN, os.kill, (os.getpid(), number))
        again.daemon = True
        waiting.append(again)
        again.start()

    waiting: list[threading.Timer] = []
    hook, sys.unraisablehook = sys.unraisablehook, report
    before, pipe = signal.signal(signal.SIGTERM, note), signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=_insist, args=(reader,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(pipe)
        signal.signal(signal.SIGTERM, before)
        sys.unraisablehook = hook
        for again in waiting:  # the run has ended: nobody is left to tell
            again.cancel()
            again.join()
        os.close(writer)
        _handled.set()
        thread.join()
        os.close(reader)


def _insist(reader: int) -> None:
    while numbers := os.read(reader, 64):
        if signal.SIGTERM in numbers and not _patient.is_set():
            if not _handled.wait(GRACE):
                leave(143, "terminated")
            _handled.clear()
