"""Runs a range of cases in one process and writes a line of JSON before and behind each; run by `tests/test_fuzz.py`.

    python tests/fuzzing/worker.py --bases=FOLDER --report=FILE --first=SEED --count=N

A folder without bases gets them first. A process that dies, or hangs where Python cannot interrupt it, leaves the line
before its case as the last.
"""

import argparse
import faulthandler
import io
import json
import os
import resource
import signal
import sys
import sysconfig
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve()
sys.path[:0] = [str(_HERE.parents[2]), str(_HERE.parents[1])]

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import safetensors  # noqa: E402
from fuzzing import bases, cases  # noqa: E402

from cascades import checkpoints, inspection, tokenizers  # noqa: E402
from cascades.errors import UserError  # noqa: E402
from cascades.generation import prompts, records  # noqa: E402

SECONDS = 20
BYTES = 2 * 2**30
LONGEST = 2000  # characters of a sentence
WARM = ("llama", "llama.gguf", "t5", "ours")
OF_WEIGHTS = ("but they differ", "no finite numbers")
TEXT = "the quick <|im_start|>user\n12 + 3\ud800é😀"
MESSAGES = [{"role": "user", "content": "the quick"}]
_CODE = tuple({os.path.realpath(each) for each in (sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"))})
# What Python, the tokenizers' threads and the C library open for themselves.
_SYSTEM = ("/proc/", "/sys/", "/dev/null", "/dev/urandom", "/etc/localtime", "/usr/share/zoneinfo", "/usr/lib")
_opened: set[str] = set()


class Slow(BaseException):
    """A case took too long."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bases", type=Path, required=True)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--count", type=int, default=1)
    asked = parser.parse_args()
    folder = asked.bases.resolve()
    if not folder.exists():
        folder.mkdir(parents=True)
        bases.write(folder)
        outside = folder / cases.OUTSIDE
        outside.mkdir()
        (outside / "model.safetensors").write_bytes((folder / "qwen2" / "model.safetensors").read_bytes())
    for name in WARM:  # whatever is loaded once is loaded before the memory is bounded
        _attempts(cases.Case(-1, "config", name, folder / name))
    _bound_memory()
    sys.addaudithook(_listen)
    _listen_to_safetensors()
    signal.signal(signal.SIGALRM, _slow)
    warnings.simplefilter("ignore")
    with asked.report.open("a") as report:
        for seed in range(asked.first, asked.first + asked.count):
            print(json.dumps({"seed": seed, "kind": cases.kind_of(seed)}), file=report, flush=True)
            print(json.dumps(run(seed, folder)), file=report, flush=True)


def run(seed: int, folder: Path) -> dict[str, Any]:
    """Runs a case; returns what came of each step and every fault."""
    case = cases.make(seed, folder, folder / f"case-{os.getpid()}")
    _opened.clear()
    _reset_peak()
    before, start = _memory("VmRSS"), time.monotonic()
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True)
    signal.alarm(SECONDS)
    try:
        outcomes, faults = _attempts(case)
    except Slow:
        outcomes, faults = {}, [f"took more than {SECONDS} s"]
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
    grown = _memory("VmHWM") - before
    if grown > BYTES:
        faults.append(f"took {grown / 2**30:.1f} GiB of memory")
    own = str(case.path.parent if case.path.is_file() else case.path)
    outside = sorted(path for path in _opened if not _allowed(path, own))
    if outside:
        faults.append(f"opened {', '.join(outside)}")
    return {
        "seed": seed,
        "kind": case.kind,
        "what": case.what,
        "seconds": round(time.monotonic() - start, 3),
        "outcomes": outcomes,
        "faults": faults,
    }


def _attempts(case: cases.Case) -> tuple[dict[str, str], list[str]]:
    """What came of each step (`ok` or the sentence), and the faults."""
    outcomes: dict[str, str] = {}
    faults: list[str] = []

    def attempt(name: str, function: Callable[[], Any]) -> Any:
        try:
            result = function()
        except UserError as error:
            sentence = outcomes[name] = str(error)
            if "\n" in sentence or "Traceback" in sentence or len(sentence) > LONGEST:
                faults.append(f"{name}: no one sentence of up to {LONGEST} characters: {sentence[:300]!r}…")
            return None
        except (Slow, KeyboardInterrupt):
            raise
        except BaseException as error:  # Rust's panics are no Exceptions
            outcomes[name] = "fault"
            faults.append(f"{name}: {type(error).__name__}: {str(error)[:300]} at {_place(error)}")
            return None
        outcomes[name] = "ok"
        return result

    if case.kind == "jsonl":
        read = attempt("prompts", lambda: prompts.read(str(case.path)))
        for record in read or ():
            attempt("record", lambda record=record: _written(record))
        return outcomes, faults
    attempt("config", lambda: checkpoints.read_config(case.path))
    attempt("load", lambda: checkpoints.load(case.path, progress=False))
    tokenizer = attempt("tokenizer", lambda: tokenizers.load(case.path))
    if tokenizer is not None:
        ids = attempt("encode", lambda: tokenizer.encode(TEXT) + tokenizer.encode(TEXT, special=False))
        attempt("decode", lambda: tokenizer.decode(ids or [0]).encode())
        if tokenizer.has_chat_template:
            attempt("chat", lambda: tokenizer.chat(MESSAGES))
    report = attempt("inspect", lambda: json.loads(json.dumps(inspection.to_json(inspection.inspect(str(case.path))))))
    if report is not None:
        told = any(problem["part"] != "template" for problem in report["problems"])
        refused = outcomes["load"] != "ok" or outcomes["tokenizer"] != "ok"
        # What only the weights themselves show is not told by headers.
        refused &= told or not any(words in outcomes["load"] for words in OF_WEIGHTS)
        if told != refused and "fault" not in outcomes.values():
            faults.append(f"inspect: {report['problems']}, but loading: {outcomes}")
    return outcomes, faults


def _written(record: dict[str, Any]) -> None:
    """A line of results with the prompt's fields must be JSON that others read."""
    file = io.StringIO()
    records.append(file, record)
    json.loads(file.getvalue(), parse_constant=_no_json)
    file.getvalue().encode()


def _no_json(name: str) -> None:
    raise AssertionError(f"{name} was written, which is no JSON")


def _place(error: BaseException) -> str:
    """The innermost line of the package."""
    at, trace = "?", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if f"{os.sep}cascades{os.sep}" in name and "site-packages" not in name:
            at = f"{Path(name).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return at


def _slow(*_: Any) -> None:
    raise Slow


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        _opened.add(os.path.abspath(os.fsdecode(arguments[0])))


def _listen_to_safetensors() -> None:
    """Its Rust opens files without telling Python."""
    opens = safetensors.safe_open

    def listening(path: Any, *arguments: Any, **options: Any) -> Any:
        _opened.add(os.path.abspath(os.fspath(path)))
        return opens(path, *arguments, **options)

    users = [module for module in list(sys.modules.values()) if getattr(module, "safe_open", None) is opens]
    assert any(module.__name__.startswith("cascades.") for module in users)
    for module in users:
        setattr(module, "safe_open", listening)  # noqa: B010 - modules of any name


def _allowed(path: str, own: str) -> bool:
    if path == own or path.startswith(f"{own}{os.sep}"):
        return True
    if path.startswith(_SYSTEM) and "environ" not in path and "/mem" not in path:
        return True
    return os.path.realpath(path).startswith(_CODE) or path.startswith(str(_HERE.parents[2] / "cascades"))


def _bound_memory() -> None:
    """Twice what is allowed, in address space: a lie that asks for more fails instead of filling the machine."""
    limit = _memory("VmSize") + 2 * BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
