"""Where the folders that travel with the package are: traces/, proofs/ and gpu/.

They hold data, prose and CUDA C and are not importable: a wheel carries them under
``h2osim/_carried/``, a checkout (also one installed with ``pip install -e``) has them at its top.
The installed copy is looked for first.
"""

from __future__ import annotations

from pathlib import Path

from h2osim.errors import UserError

_PACKAGE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """The carried folder of this name; UserError saying where it was looked for."""
    places = (_PACKAGE / "_carried" / name, _PACKAGE.parent / name)
    for place in places:
        if place.is_dir():
            return place
    raise UserError(
        f"folder {name}/ of h2osim not found: looked at {places[0]} and {places[1]}; "
        f"reinstall h2osim"
    )


def traces() -> Path:
    """The folder of the bundled traces."""
    return folder("traces")


def proofs() -> Path:
    """The folder of the proofs, one file a theorem."""
    return folder("proofs")


def gpu() -> Path:
    """The folder of the CUDA C kernels."""
    return folder("gpu")


def bundled_traces() -> dict[str, Path]:
    """Name and folder of every bundled trace, in the order of their names.

    Those of ``traces/local/`` (the user's own, not under version control) are found by their names
    too; a bundled trace of the same name goes first.
    """
    try:
        root = traces()
    except UserError:
        return {}
    found: dict[str, Path] = {}
    for parent in (root, root / "local"):
        if parent.is_dir():
            for place in sorted(parent.iterdir()):
                if (place / "trace.json").is_file():
                    found.setdefault(place.name, place)
    return dict(sorted(found.items()))
