"""Our own checkpoints: orbax parameters, `cascades.json`, and the tokenizer's files beside them."""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Collection, Iterator
from typing import Any

import jax

from cascades.checkpoints import configs, gguf
from cascades.checkpoints.json_files import read_object
from cascades.checkpoints.reader import Stored, check, flatten, unflatten
from cascades.checkpoints.sources import AnyPath, bucket, bucket_errors, first_line, tokenizer_files
from cascades.errors import UserError
from cascades.models import Config, T5Config, abstract_params
from cascades.typing import Params

CONFIG = "cascades.json"
FORMAT = 1
PARAMS = "params"


def save(
    directory: str | os.PathLike,
    config: Config,
    params: Params,
    *,
    tokenizer_source: str | os.PathLike | None = None,
    shared: Collection[str] = (),
) -> None:
    """Writes a checkpoint that `load` and `tokenizers.load` read.

    A local directory appears whole or not at all: it is written under another name and renamed. In a bucket, and where
    several processes save, it is written in place, and `cascades.json` comes last.

    Args:
      directory: new or empty.
      config: the architecture.
      params: its parameters, saved in their own dtypes.
      tokenizer_source: the directory or file whose tokenizer is saved too.
      shared: top-level names of `params` that are left out; `load` takes them from the drafter's verifier.

    Raises:
      UserError: the directory is taken, or the parameters do not fit the config.
    """
    import orbax.checkpoint as ocp  # here, as it takes as long as all other imports together

    target = writable(directory)
    check("the parameters to save", _shapes(abstract_params(config)), _shapes(params))
    in_place = jax.process_count() > 1 or not isinstance(target, pathlib.Path)
    scratch = target if in_place else target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(scratch / PARAMS, {name: leaf for name, leaf in params.items() if name not in shared})
        if jax.process_index() == 0:
            if tokenizer_source is not None:
                copy_tokenizer(pathlib.Path(tokenizer_source), scratch)
            content = {"format": FORMAT, "config": configs.to_json(config), "files": _files(scratch)}
            content |= {"shared": sorted(shared)} if shared else {}
            (scratch / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        if not in_place:
            if target.exists():
                target.rmdir()
            scratch.rename(target)
    finally:
        if not in_place:
            shutil.rmtree(scratch, ignore_errors=True)


def read_config(directory: AnyPath) -> Config:
    """The architecture that `cascades.json` describes."""
    return configs.from_json(_description(directory)["config"], str(directory / CONFIG))


def shared(directory: AnyPath) -> tuple[str, ...]:
    """Top-level names of the parameters that a drafter takes from its verifier."""
    return tuple(_description(directory).get("shared", ()))


def load(directory: AnyPath, dtype, *, shardings: Params | None = None) -> tuple[Config, Params]:
    """Restores a checkpoint in `dtype` (norm scales in float32), without the parameters that it shares.

    Args:
      shardings: a tree like the parameters', of `jax.sharding.Sharding`s; None = the default device.

    Raises:
      UserError: damaged, or tensors that do not fit its config.
    """
    import orbax.checkpoint as ocp  # here, as it takes as long as all other imports together

    config = read_config(directory)
    check_whole(directory)
    check_tensors(directory, config)
    left_out = shared(directory)
    abstract = {path: leaf for path, leaf in flatten(abstract_params(config, dtype)).items() if path[0] not in left_out}
    places = {} if shardings is None else flatten(shardings)
    default = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=places.get(path, default))
        for path, leaf in abstract.items()
    }
    with _damage(directory), ocp.StandardCheckpointer() as checkpointer:
        return config, checkpointer.restore(directory / PARAMS, unflatten(target))


def stored(directory: AnyPath) -> dict[str, Stored]:
    """The shape and type of every stored parameter, from the metadata alone.

    Raises:
      UserError: damaged.
    """
    import orbax.checkpoint as ocp  # here, as it takes as long as all other imports together

    with _damage(directory), ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.metadata(directory / PARAMS).item_metadata.tree
        return {"/".join(path): Stored(tuple(leaf.shape), str(leaf.dtype)) for path, leaf in flatten(tree).items()}


def check_tensors(directory: AnyPath, config: Config) -> None:
    """Raises a UserError unless the stored parameters are those of `config` that are not shared."""
    left_out, tensors = shared(directory), stored(directory)
    layers = config.num_layers + (config.num_decoder_layers if isinstance(config, T5Config) else 0)
    if layers > len(tensors):  # the claimed number may be too large to build
        raise UserError(
            f"{directory} should hold {layers} layers, as {CONFIG} says, but has {len(tensors)} tensors: convert the "
            "model again."
        )
    own = {name: leaf for name, leaf in abstract_params(config).items() if name not in left_out}
    check(str(directory), _shapes(own), {name: each.shape for name, each in tensors.items()})


@contextlib.contextmanager
def _damage(directory: AnyPath) -> Iterator[None]:
    """Turns orbax's errors about a checkpoint into a UserError."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError, AttributeError, KeyError) as error:
        raise UserError(f"{directory} is cut off or damaged ({first_line(error)}): convert the model again.") from None


def copy_tokenizer(source: pathlib.Path, target: AnyPath) -> None:
    """Copies what `tokenizers.load` reads: a GGUF file's keys as `tokenizer.gguf`, or the files of any other source."""
    if source.is_file() and source.suffix not in (".model", ".json"):
        gguf.copy_metadata(source, target / "tokenizer.gguf")
        return
    files = tokenizer_files(source)
    config = files.pop("config.json", None)
    for name, file in files.items():
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes(file.read_bytes())
    if config is not None:
        _copy_ends(config, target / "generation_config.json")


def _copy_ends(config: AnyPath, target: AnyPath) -> None:
    """Adds BOS and the ends of a turn that only a model's `config.json` names to a copy of `generation_config.json`."""
    model, generation = _lenient_object(config), _lenient_object(target)
    text = model.get("text_config")
    inner = text if isinstance(text, dict) and model.get("eos_token_id") is None else {}
    lists = [_ids(each.get("eos_token_id")) for each in (model, inner, generation)]
    ends = list(dict.fromkeys(token for tokens in lists for token in tokens))
    begin = [token for each in (inner, model) for token in _ids(each.get("bos_token_id"))]
    begins = {"bos_token_id": begin[0]} if begin else {}
    if {*ends} - {*lists[2]} or begins.keys() - generation.keys():
        content = begins | generation | {"eos_token_id": ends}
        target.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _lenient_object(path: AnyPath) -> dict[str, Any]:
    """The object in a JSON file; an empty one where it cannot be read, since `tokenizers.load` says why."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _ids(value: Any) -> list[int]:
    return [token for token in (value if isinstance(value, list) else [value]) if type(token) is int]


def writable(directory: str | os.PathLike) -> AnyPath:
    """The path of a directory in which a checkpoint may be written.

    Raises:
      UserError: it is taken, or neither local nor in a bucket.
    """
    uri = os.fspath(directory)
    if "://" in uri:
        target = bucket(uri)
        with bucket_errors(uri):
            taken = (target / CONFIG).exists()
    else:
        target = pathlib.Path(uri).expanduser().absolute()
        taken = target.exists() and not (target.is_dir() and not any(target.iterdir()))
    if taken and jax.process_index() == 0:  # the other processes may see what the first has written
        raise UserError(f"{target} should be a new directory, but is taken: give another one, or remove it.")
    return target


def _description(directory: AnyPath) -> dict[str, Any]:
    path = directory / CONFIG
    content = read_object(path)
    version, files, names = content.get("format"), content.get("files"), content.get("shared", [])
    sizes = isinstance(files, dict) and all(type(size) is int for size in files.values())
    shared = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if version is None or not sizes or not shared or not isinstance(content.get("config"), dict):
        raise UserError(f"{path} should describe a checkpoint, but cannot be read: convert the model again.")
    if version != FORMAT:
        raise UserError(f"{path} is of format {version}, but format {FORMAT} was expected: convert the model again.")
    return content


def _files(directory: AnyPath) -> dict[str, int]:
    """The bytes of each of the parameters' files; none in a bucket, where no file is ever cut off."""
    if not isinstance(directory, pathlib.Path):
        return {}
    files = sorted(path for path in (directory / PARAMS).rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.stat().st_size for path in files}


def check_whole(directory: AnyPath) -> None:
    """Raises a UserError for a file that is missing or cut off; orbax would print tracebacks of its threads."""
    if not isinstance(directory, pathlib.Path):
        return
    for name, size in _description(directory)["files"].items():
        path = directory / name
        actual = path.stat().st_size if path.is_file() else 0
        if actual != size:
            raise UserError(f"{path} should be {size} bytes long, but has {actual}: copy or convert the model again.")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {"/".join(path): tuple(leaf.shape) for path, leaf in flatten(tree).items()}
