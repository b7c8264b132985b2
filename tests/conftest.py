"""Strict settings for every test: no silent broadcasting of ranks, no silent promotion of dtypes."""

import contextlib
import gc
import os
import pathlib

import jax
import pytest
import tiny
from etils import epath

# What is printed and computed should not hang on where the tests run: in float32 on any CPU, unless a test says more.
os.environ["TERM"] = "xterm"
os.environ["CASCADES_CPUINFO"] = os.devnull
for name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(name, None)

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_threefry_partitionable", True)
jax.config.update("jax_traceback_in_locations_limit", 0)  # nobody reads where in our source an operation comes from


# Programs of tests run for milliseconds and compile for seconds: with these flags for a third of them.
QUICK = "--xla_backend_optimization_level=0"
if jax.__version_info__ < (0, 11):
    QUICK += " --xla_cpu_use_fusion_emitters=false"  # a flag that later versions no longer have


def pytest_configure(config):
    """Compiles quickly, also in the processes that tests start. Slow tests, and `XLA_FLAGS= pytest`, do as users do."""
    if "not slow" in config.option.markexpr:
        os.environ.setdefault("XLA_FLAGS", QUICK)


def pytest_collection_finish():
    """Python's search for garbage leaves out what lives to the end, and comes less often: traces make many objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


MOST_MAPS = 20_000  # regions of memory; Linux ends a process at 65,530, and each compiled program takes several


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Frees what a process has compiled before it is too much: a test may compile programs of a gigabyte."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory):
    """Paths of a tiny pair of models; the package keeps what it caches beside them."""
    files = tiny.write(tmp_path_factory.mktemp("tiny"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CASCADES_CACHE", files.home)
        yield files


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Where the files of gs://bucket lie."""
    root = tmp_path / "bucket"
    root.mkdir()
    monkeypatch.setenv("CASCADES_CACHE", str(tmp_path / "cache"))

    def local(path):
        return pathlib.Path(str(path).replace("gs://bucket", str(root)))

    def open_file(_, path, mode="r"):
        return local(path).open(mode)

    @contextlib.contextmanager
    def mocked():
        with epath.testing.mock_epath(
            exists=lambda _, path: local(path).exists(),
            isdir=lambda _, path: local(path).is_dir(),
            listdir=lambda _, path: [each.name for each in local(path).iterdir()],
            open=open_file,
        ):
            yield root

    with mocked():
        yield root


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """Tests that need the same program share it, also those of other modules."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    yield


@pytest.fixture
def standard_promotion():
    """Lifts the strict dtypes for a test that steps an optax optimizer: Adam raises a float to an int32 step."""
    with jax.numpy_dtype_promotion("standard"):
        yield
