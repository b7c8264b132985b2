"""`launch/decode.py` as a process: interrupted, killed, read by half, and talked to at a terminal."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest
import tiny

COLOURS = {"32": "draft", "33": "rule", "31": "correction", "36": "bonus"}


def start(files, *arguments, **options):
    settings = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    } | options
    return subprocess.Popen(
        tiny.command(*arguments), env=tiny.environment(files), cwd=Path(files.verifier).parent, **settings
    )


def wait_for_lines(file, count, process, seconds=tiny.PATIENCE):
    """Waits until a run has written so many lines."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if file.exists() and file.read_bytes().count(b"\n") >= count:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.kill()
    pytest.fail("nothing was written")


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_keeps_what_is_finished(tiny_files, tmp_path, number, code, word):
    file = tmp_path / "answers.jsonl"
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"the {i}"}) + "\n" for i in range(400)))
    knobs = tiny.pair(tiny_files, METHOD="verifier_only", MAX_NEW_TOKENS=250, IGNORE_EOS=True, BATCH_SIZE=2)
    arguments = [*knobs, f"--input={tmp_path}/prompts.jsonl", f"--output={file}"]

    process = start(tiny_files, *arguments)
    wait_for_lines(file, 1, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=tiny.PATIENCE)
    assert process.returncode == code, err
    assert "Traceback" not in err and err.splitlines()[-1] == word
    assert "tok/s" in err  # the table of what was finished
    first = tiny.lines(file)
    assert 1 <= len(first) < 400 and all(line["stats"]["tokens_out"] == 250 for line in first)
    assert out.startswith("[1/400] the 0\n" + first[0]["text"])

    process = start(tiny_files, *arguments)
    wait_for_lines(file, len(first) + 1, process)
    process.kill()
    process.communicate(timeout=tiny.PATIENCE)
    both = tiny.lines(file)
    assert both[: len(first)] == first and len(both) > len(first)
    same = both[len(first)]
    assert (same["prompt"], same["token_ids"]) == (first[0]["prompt"], first[0]["token_ids"])


def test_a_reader_that_leaves_ends_the_run_quietly(tiny_files):
    knobs = tiny.pair(tiny_files, METHOD="verifier_only", MAX_NEW_TOKENS=250, IGNORE_EOS=True, BATCH_SIZE=2)
    with start(tiny_files, *knobs, *[f"--prompt=the {i}" for i in range(40)]) as process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(60) == 1
    assert "Traceback" not in err and "BrokenPipe" not in err


class Terminal:
    """A program on a pseudo-terminal. text: everything it printed."""

    def __init__(self, command, env, columns=100):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        env = {name: value for name, value in env.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "CI")}
        self.process = subprocess.Popen(
            command, env=env | {"TERM": "xterm-256color"}, stdin=slave, stdout=slave, stderr=slave, close_fds=True
        )
        os.close(slave)
        self.text = ""

    def read_until(self, pattern, seconds=tiny.PATIENCE):
        """Reads on until the pattern is found behind what was read before; returns what was read."""
        start, end = len(self.text), time.monotonic() + seconds
        while not re.search(pattern, self.text[start:]):
            if time.monotonic() > end:
                self.process.kill()
                pytest.fail(f"no {pattern!r} in {self.text!r}")
            if select.select([self.master], [], [], 1.0)[0]:
                try:
                    data = os.read(self.master, 1 << 16)
                except OSError:  # the other side was closed
                    data = b""
                if not data:
                    pytest.fail(f"no {pattern!r} in {self.text!r}")
                self.text += data.decode("utf-8", "replace")
        return self.text[start:]

    def say(self, line):
        os.write(self.master, f"{line}\n".encode())

    def end(self):
        with contextlib.suppress(OSError):
            while data := os.read(self.master, 1 << 16):
                self.text += data.decode("utf-8", "replace")
        os.close(self.master)
        return self.process.wait(tiny.PATIENCE)


def plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r\n", "\n")


def test_a_conversation(tiny_files, tmp_path):
    file = tmp_path / "answers.jsonl"
    knobs = tiny.pair(tiny_files, VERIFIER=tiny_files.chat, K_MAX=1, MAX_NEW_TOKENS=40, ALPHA=0.5, IGNORE_EOS=True)
    env = tiny.environment(tiny_files)
    terminal = Terminal(tiny.command(*knobs, f"--output={file}"), env)
    hello = terminal.read_until(r"> (\x1b\[0m)?$")
    assert "Type a prompt" in hello and "verifier's correction" in hello
    terminal.say("the quick")
    first = terminal.read_until(r"\n(\x1b\[1m)?> (\x1b\[0m)?$")
    terminal.say("and then")
    terminal.read_until(r"\n(\x1b\[1m)?> (\x1b\[0m)?$")
    terminal.say("")
    assert terminal.end() == 0, terminal.text

    answers = tiny.lines(file)
    assert [line["prompt"] for line in answers] == ["the quick", "and then"]
    assert answers[0]["stats"]["compile_s"] > 0
    assert answers[1]["stats"]["compile_s"] < answers[0]["stats"]["compile_s"]  # the loop has room for more turns
    shown = plain(first)
    text = "".join(character for character in answers[0]["text"] if character.isprintable())
    assert text in "".join(character for character in shown if character.isprintable())
    # The spinner is gone before the first token, and every token stands in the colour of its origin.
    answer = first[first.rindex("\x1b[?25h") :].replace("\r\n", "\n")
    assert "compiling" in first and "compiling" not in answer
    pieces = re.findall(r"\x1b\[(3[0-9])m(.*?)\x1b\[0m", answer, re.DOTALL)
    assert text == "".join(character for _, piece in pieces for character in piece if character.isprintable())
    kinds = {COLOURS[colour] for colour, _ in pieces}
    assert len(kinds) > 1 and kinds <= set(answers[0]["origins"])
    table = plain(terminal.text[terminal.text.rindex("request") :])
    table, told = table[: table.index("decoding ")], table[table.index("decoding ") :]
    assert all(len(line) <= 80 for line in table.splitlines())
    assert "a drafter step takes" in told and "--gin.COSTS" not in told  # they were given
    assert re.search(r"^ 1 +40 +length", table, re.MULTILINE)


def test_one_prompt_at_a_terminal_and_an_interrupt(tiny_files):
    knobs = tiny.pair(tiny_files, METHOD="verifier_only", MAX_NEW_TOKENS=300, IGNORE_EOS=True)
    prompts = [f"--prompt=the {i}" for i in range(60)]
    terminal = Terminal(tiny.command(*knobs, "--gin.BATCH_SIZE=1", *prompts), tiny.environment(tiny_files))
    terminal.read_until(r"\[2/60\] the 1(\x1b\[0m)?\r\n.*\x1b\[34m")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 130
    assert "Traceback" not in terminal.text
    assert plain(terminal.text).rstrip().endswith("interrupted")
    assert "\x1b[?25l" not in terminal.text[terminal.text.rindex("\x1b[?25h") :]  # the cursor is there again
