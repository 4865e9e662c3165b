"""Where the folders that travel with the package are: traces/, proofs/ and gpu/.

They hold data, prose and CUDA C and are not importable: a wheel carries them under
``h2osim/_carried/``, a checkout (also one installed with ``pip install -e``) has them at its top.
The installed copy is looked for first.
"""

from __future__ import annotations

from pathlib import Path

from h2osim.support.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]


def folder(name: str) -> Path:
    """The bundled folder of this name; UserError saying where it was looked for."""
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
