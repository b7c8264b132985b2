import pathlib
import shutil
import sys

import huggingface_hub
import pytest
from etils import epath
from huggingface_hub import errors

from cascades import checkpoints
from cascades.checkpoints import sources
from cascades.errors import UserError


def test_a_path(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("~/model.gguf", "model.gguf", tmp_path / "model.gguf"):
        assert checkpoints.resolve(name) == tmp_path / "model.gguf"


def test_a_missing_path_has_near_names(tmp_path):
    (tmp_path / "smollm2.gguf").write_bytes(b"")
    with pytest.raises(UserError, match="did you mean smollm2.gguf"):
        checkpoints.resolve(tmp_path / "smolm2.gguf")
    with pytest.raises(UserError, match="there is no file or directory.*hf://org/repo"):
        checkpoints.resolve(tmp_path / "nowhere" / "else")


@pytest.mark.parametrize("uri", ["s3://bucket/model", "https://example.com/model.gguf", ""])
def test_an_unknown_form(uri):
    with pytest.raises(UserError, match="weights should come from a path, hf://"):
        checkpoints.resolve(uri)


def test_a_drafter_that_comes_with_the_package():
    path = checkpoints.resolve("shipped://smollm2-135m-eagle")
    assert (path / "cascades.json").is_file() and checkpoints.read_config(path).reads_features
    with pytest.raises(UserError, match="no drafter 'smollm3' comes with this package: there is smollm2-135m-eagle"):
        checkpoints.resolve("shipped://smollm3")


def test_the_cache_can_be_moved(tmp_path, monkeypatch):
    monkeypatch.setenv("CASCADES_CACHE", "")
    assert checkpoints.cache_directory() == pathlib.Path.home() / ".cache" / "cascades"
    monkeypatch.setenv("CASCADES_CACHE", str(tmp_path))
    assert checkpoints.cache_directory() == tmp_path


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The Hugging Face hub with one repository; returns the list of its calls."""
    calls = []
    (tmp_path / "2b").mkdir()
    for name in ("config.json", "2b/_METADATA", "model.gguf"):
        (tmp_path / name).write_text(name)

    def snapshot_download(repo, revision, allow_patterns):
        calls.append((repo, revision, allow_patterns))
        return str(tmp_path)

    def hf_hub_download(repo, file, revision):
        calls.append((repo, revision, file))
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    return calls


def test_the_hub(hub, tmp_path):
    assert checkpoints.resolve("hf://org/repo") == tmp_path
    assert checkpoints.resolve("hf://org/repo@v1.0/model.gguf") == tmp_path / "model.gguf"
    assert checkpoints.resolve("hf://org/gemma-2.5@main/2b") == tmp_path / "2b"
    assert hub[0][:2] == ("org/repo", None) and "*.safetensors" in hub[0][2]
    assert hub[1] == ("org/repo", "v1.0", "model.gguf")
    assert hub[2] == ("org/gemma-2.5", "main", ["2b/*", "tokenizer.model", "spiece.model"])
    with pytest.raises(UserError, match="nothing readable at 7b"):
        checkpoints.resolve("hf://org/repo/7b")
    with pytest.raises(UserError, match="not as 'hf://repo'"):
        checkpoints.resolve("hf://repo")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("GatedRepoError", "accept its licence at https://huggingface.co/org/repo"),
        ("RepositoryNotFoundError", "there is no model org/repo"),
        ("RevisionNotFoundError", "no revision 'v1'"),
        ("EntryNotFoundError", "no file 'model.gguf'"),
        ("LocalEntryNotFoundError", "cannot be reached"),
        ("HfHubHTTPError", "cannot be fetched"),
    ],
)
def test_what_the_hub_refuses(monkeypatch, name, reason):
    kind = getattr(errors, name)

    def refuse(*_, **__):
        raise kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(UserError, match=reason):
        checkpoints.resolve("hf://org/repo@v1/model.gguf")


def test_the_hub_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'cascades\[hf\]'"):
        checkpoints.resolve("hf://org/repo")


def test_a_file_in_a_bucket_is_copied_once(bucket, tmp_path):
    (bucket / "model.gguf").write_bytes(b"weights")
    path = checkpoints.resolve("gs://bucket/model.gguf")
    assert isinstance(path, pathlib.Path) and path.is_relative_to(tmp_path / "cache")
    assert path.read_bytes() == b"weights"
    shutil.rmtree(bucket)
    bucket.mkdir()
    (bucket / "model.gguf").write_bytes(b"others")
    assert checkpoints.resolve("gs://bucket/model.gguf").read_bytes() == b"weights"


def test_a_directory_in_a_bucket(bucket):
    for folder in ("hf/additional_chat_templates", "hf/logs"):
        (bucket / folder).mkdir(parents=True)
    names = {"config.json", "model.safetensors", "additional_chat_templates/rag.jinja"}
    for name in (*names, "logs/1.txt"):
        (bucket / "hf" / name).write_text(name)
    path = checkpoints.resolve("gs://bucket/hf/")
    assert {each.relative_to(path).as_posix() for each in path.rglob("*.*")} == names


def test_orbax_stays_in_its_bucket_and_its_tokenizer_comes(bucket):
    (bucket / "flax").mkdir()
    (bucket / "flax" / "_METADATA").write_text("")
    (bucket / "tokenizer.model").write_bytes(b"pieces")
    path = checkpoints.resolve("gs://bucket/flax")
    assert isinstance(path, epath.Path) and str(path) == "gs://bucket/flax"
    directory = sources.tokenizer_directory(path)
    assert isinstance(directory, pathlib.Path)
    assert (directory / "tokenizer.model").read_bytes() == b"pieces"


def test_the_parts_of_a_model_come_together(bucket, hub, tmp_path):
    names = [f"big-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for name in names:
        (bucket / name).write_text(name)
    first = checkpoints.resolve(f"gs://bucket/{names[0]}")
    assert first.name == names[0] and {each.name: each.read_text() for each in first.parent.iterdir()} == {
        name: name for name in names
    }
    assert checkpoints.resolve(f"hf://org/repo@v1/q4/{names[0]}") == tmp_path / "q4" / names[0]
    assert hub == [("org/repo", "v1", f"q4/{name}") for name in names]


def test_a_copy_from_inside_a_folder_does_not_stand_for_the_folder(bucket):
    (bucket / "hf" / "flax").mkdir(parents=True)
    for name in ("tokenizer.model", "config.json", "model.safetensors", "flax/_METADATA"):
        (bucket / "hf" / name).write_text(name)
    file = checkpoints.resolve("gs://bucket/hf/tokenizer.model")
    sources.tokenizer_directory(checkpoints.resolve("gs://bucket/hf/flax"))
    folder = checkpoints.resolve("gs://bucket/hf")
    assert {each.name for each in folder.iterdir()} == {"tokenizer.model", "config.json", "model.safetensors"}
    assert file.name == "tokenizer.model" and file.read_text() == "tokenizer.model"


def test_a_tokenizer_in_a_bucket_is_that_of_a_local_copy(bucket):
    """Beside the directory only tokenizer.model counts; in it cascades.json tells a T5, and templates have a folder."""
    ours = bucket / "ours"
    (ours / "additional_chat_templates").mkdir(parents=True)
    for name in ("cascades.json", "tokenizer.model", "additional_chat_templates/rag.jinja"):
        (ours / name).write_text(name)
    for name in ("tokenizer.json", "tokenizer.model", "generation_config.json"):
        (bucket / name).write_text("another model's")
    directory = sources.tokenizer_directory(checkpoints.resolve("gs://bucket/ours"))
    copied = {path.relative_to(directory).as_posix(): path.read_text() for path in directory.rglob("*.*")}
    assert copied == {each.relative_to(ours).as_posix(): each.read_text() for each in ours.rglob("*.*")}


def test_what_a_bucket_refuses(bucket, monkeypatch):
    with pytest.raises(UserError, match="there is nothing at gs://bucket/none"):
        checkpoints.resolve("gs://bucket/none")
    for error, reason in ((ImportError("gcsfs"), "pip install gcsfs"), (RuntimeError("401"), "gcloud auth")):

        def refuse(_, error=error):
            raise error

        monkeypatch.setattr(epath.Path, "exists", refuse)
        monkeypatch.setattr(type(epath.Path("gs://bucket")), "exists", refuse)
        with pytest.raises(UserError, match=reason):
            checkpoints.resolve("gs://bucket/model.gguf")
