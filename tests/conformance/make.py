"""Let a peer choose, and write what it kept: ``python tests/conformance/make.py PEER [CHECKOUT]``.

Runs where the peer runs, in an environment of its own; README.md here says how each is made.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))


def made_by(peer: str, root: Path | None) -> str:
    """The installed package's version, or the commit of a checkout."""
    if root is None:
        try:
            return f"{peer} {version(peer)}"
        except PackageNotFoundError:
            raise SystemExit(f"{peer}: not installed; name a checkout") from None
    words = ["git", "-C", str(root), "log", "-1", "--format=%H"]
    return f"commit {subprocess.run(words, capture_output=True, text=True, check=True).stdout[:12]}"


def main(peer: str, root: str | None = None) -> None:
    """Write data/PEER.json: one set a line."""
    from cases import CASES
    from peers.shown import newest_of_equals

    newest_of_equals()
    module = importlib.import_module(f"peers.{peer.replace('-', '_')}")
    where = None if root is None else Path(root).resolve()
    found = list(module.sets(where))
    head = {
        "peer": peer,
        "source": module.SOURCE,
        "made_by": made_by(peer, where),
        "cases": {name: CASES[name].digest for name in sorted({one["case"] for one in found})},
    }
    lines = ",\n".join(json.dumps(one) for one in found)
    text = json.dumps(head)[:-1] + ',\n"sets": [\n' + lines + "\n]}\n"
    (HERE / "data" / f"{peer}.json").write_text(text, encoding="utf-8")
    print(f"{peer}: {len(found)} sets of {len({one['calls'] for one in found})} rules")


if __name__ == "__main__":
    main(*sys.argv[1:])
