"""The store of a study: it goes on where it was stopped, in processes and on a cluster."""

from __future__ import annotations

import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="a running model needs the extra `record` (torch)")
pytest.importorskip("transformers", reason="a running model needs the extra `record`")

from evaluation_cases import IDS, MODEL, same
from honest_decoder import P, make, refused, tokens

import h2osim
from h2osim.closed_loop.caches import Eviction
from h2osim.closed_loop.decoding import Decoder
from h2osim.support.atomic import LEFTOVERS
from h2osim.support.errors import UserError


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The evicted passes that were computed."""
    seen: list[str] = []
    plain = Decoder.evict_each

    def evict(self: Decoder, evictions: Sequence[Eviction], *more: Any) -> Any:
        seen.extend(one.configured.text if one.configured else "" for one in evictions)
        return plain(self, evictions, *more)

    monkeypatch.setattr(Decoder, "evict_each", evict)
    yield seen


def test_a_study_goes_on_where_it_was_stopped(tmp_path: Path, counted: list[str]) -> None:
    texts, store = IDS | {"b": tokens(40, 20)}, tmp_path / "s"

    def run(**more: Any) -> Any:
        given: dict[str, Any] = {"prompt_len": P, "steps": True, "store": store}
        return h2osim.evaluate(MODEL, texts, ["h2o", "tova"], [6, 0.5], **(given | more))

    expected = run(store=None)
    counted.clear()

    def stop(done: float, total: float, what: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(progress=stop)
    assert counted == ["h2o", "h2o", "tova"]
    left = store / "passes" / ".h2osim-0123456789abcdef.partial"
    left.mkdir()
    (left / "0-0-0.npz").write_bytes(b"half")
    damaged = store / "passes" / "0-0-0.npz"
    content = bytearray(damaged.read_bytes())
    third = len(content) // 3
    content[third : third + 64] = bytes(64)  # a bit may be one that means nothing
    damaged.write_bytes(content)
    counted.clear()
    assert same(run(), expected)
    assert counted == ["h2o", "tova", "h2o", "h2o", "tova", "tova"]  # the damaged one, and the rest
    assert not list(store.rglob(LEFTOVERS))
    counted.clear()
    assert same(run(), expected) and not counted
    for more, said in (
        ({"prompt_len": P + 1}, "texts 1 of 2 (a), prompt_len is 9, asked for is 10"),
        ({"share": "layer"}, "share is group, asked for is layer"),
        ({"layers": [1]}, "layers is None, asked for is [1]"),
    ):
        with pytest.raises(UserError, match="holds another study") as error:
            run(**more)
        assert said in str(error.value)
    other = make("gqa")
    other.get_input_embeddings().weight.data[0, 0] += 1
    assert "sha256 is" in refused(
        other, texts, ["h2o", "tova"], [6, 0.5], prompt_len=P, store=store
    )
    (store / "study.json").write_text("[]")
    assert "study.json: found [], expected object" in refused(MODEL, IDS, "h2o", 6, store=store)
    assert "something else than the store of a study" in refused(
        MODEL, IDS, "h2o", 6, store=tmp_path
    )


def test_what_a_kill_left_of_a_store_is_no_other_store(tmp_path: Path) -> None:
    """Found: killed between its folders and its identity, a store was refused for ever."""
    expected = h2osim.evaluate(MODEL, IDS, "h2o", 6)
    half = tmp_path / "s" / ".h2osim-0123456789abcdef.partial"
    for place in (tmp_path / "s" / "texts", tmp_path / "s" / "passes", half):
        place.mkdir(parents=True)
    (half / "study.json").write_text("{")
    assert same(h2osim.evaluate(MODEL, IDS, "h2o", 6, store=tmp_path / "s"), expected)
    assert not half.exists()


@pytest.mark.parametrize("content", [b"", b"PK\5\6" + bytes(18), b"\x93NUMPY", b"{}", None])
def test_a_file_of_a_store_that_is_no_archive_is_computed_again(
    tmp_path: Path, content: bytes | None
) -> None:
    """None: a header that asks for a terabyte, under a checksum that fits."""
    store = tmp_path / "s"
    expected = h2osim.evaluate(MODEL, IDS, "h2o", 6, store=store)
    for file in (store / "texts/0.npz", store / "passes/0-0-0.npz"):
        if content is None:
            header = {"descr": "<f8", "fortran_order": False, "shape": (1 << 37,)}
            with zipfile.ZipFile(file, "w") as archive, archive.open("kl.npy", "w") as member:
                np.lib.format.write_array_header_1_0(member, header)
        else:
            file.write_bytes(content)
        assert same(h2osim.evaluate(MODEL, IDS, "h2o", 6, store=store), expected)


def test_files_that_were_copied_over_others_are_computed_again(tmp_path: Path) -> None:
    """Each is whole; the numbers of one policy, budget, text or study came out as another's."""
    store, foreign = tmp_path / "s", tmp_path / "f"
    texts = {"a": IDS["a"], "b": list(reversed(IDS["a"]))}
    expected = h2osim.evaluate(MODEL, texts, ["h2o", "tova"], [6, 0.5], store=store)
    h2osim.evaluate(MODEL, {"a": texts["b"], "b": texts["a"]}, ["h2o", "tova"], [6, 0.5],
                    store=foreign)  # fmt: skip
    for source, target in (
        (store / "passes/0-1-0.npz", "passes/0-0-0.npz"),
        (store / "passes/0-0-1.npz", "passes/0-0-0.npz"),
        (store / "texts/1.npz", "texts/0.npz"),
        (foreign / "passes/0-0-0.npz", "passes/0-0-0.npz"),
    ):
        (store / target).write_bytes(source.read_bytes())
        found = h2osim.evaluate(MODEL, texts, ["h2o", "tova"], [6, 0.5], store=store)
        assert same(found, expected), target


def test_a_rule_that_changed_is_another_study(tmp_path: Path) -> None:
    rule = (
        "from h2osim import Policy\n\n\ndef rank(pos):\n    return {}\n\n\n"
        "POLICY = Policy(name='own', summary='', source='', rank=rank)\n"
    )
    file = tmp_path / "own.py"
    file.write_text(rule.format("pos * 1.0"))
    h2osim.evaluate(MODEL, IDS, str(file), 6, store=tmp_path / "s")
    file.write_text(rule.format("-pos * 1.0"))
    assert "declarations 1 of 1" in refused(MODEL, IDS, str(file), 6, store=tmp_path / "s")


@pytest.fixture(scope="module", name="saved")
def make_saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make("gqa", double=False).save_pretrained(folder)
    return folder


def test_what_processes_need_is_asked_for_first() -> None:
    for how in ({"jobs": 2}, {"dask": "tcp://x:1"}):
        assert "a model in memory runs in one process" in refused(MODEL, IDS, "h2o", 6, **how)
    assert "--dask: give a store too" in refused("smollm2", IDS, "h2o", 6, dask="tcp://x:1")


@pytest.mark.nightly
def test_processes_find_what_one_does(saved: Path, tmp_path: Path) -> None:
    texts = {"a": tokens(41), "b": tokens(42)}
    split = np.array([[4, 9], [7, 20]])
    one = h2osim.evaluate(str(saved), texts, ["h2o", "tova"], [6, split], generate=4)
    two = h2osim.evaluate(
        str(saved), texts, ["h2o", "tova"], [6, split], generate=4, jobs=2, store=tmp_path / "s"
    )
    assert same(one, two)


@pytest.mark.nightly
def test_a_cluster_finds_what_one_process_does(saved: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="needs the extra `dask`")
    texts = {"a": tokens(41), "b": tokens(42)}
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        address = cluster.scheduler_address
        there = h2osim.evaluate(
            str(saved), texts, ["h2o", "tova"], [6], dask=address, store=tmp_path / "s"
        )
    assert same(there, h2osim.evaluate(str(saved), texts, ["h2o", "tova"], [6]))


@pytest.mark.nightly
def test_a_killed_study_loses_only_what_was_in_flight(saved: Path, tmp_path: Path) -> None:
    code = (
        "import h2osim; from honest_decoder import tokens; h2osim.evaluate("
        f"{str(saved)!r}, {{'a': tokens(41), 'b': tokens(42)}}, ['h2o', 'tova'], "
        f"list(range(4, 16)), store={str(tmp_path / 's')!r})"
    )
    kept: set[Path] = set()
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent)
        before = len(kept)
        for _ in range(600):
            kept = set((tmp_path / "s" / "passes").glob("[0-9]*.npz"))
            if len(kept) > before or process.poll() is not None:
                break
            time.sleep(0.1)
        process.kill()
        process.wait()
        now = set((tmp_path / "s" / "passes").glob("[0-9]*.npz"))
        assert kept <= now
        kept = now
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True)
    found = h2osim.evaluate(
        str(saved), {"a": tokens(41), "b": tokens(42)}, ["h2o", "tova"], list(range(4, 16)),
        store=tmp_path / "s",
    )  # fmt: skip
    whole = h2osim.evaluate(
        str(saved), {"a": tokens(41), "b": tokens(42)}, ["h2o", "tova"], list(range(4, 16))
    )
    assert same(found, whole)
