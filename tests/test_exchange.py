"""Attention that others dumped becomes a trace, and a trace becomes a file that others open."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Run, fails
from safetensors.numpy import save_file

import h2osim
from h2osim.traces.dumps import read_safetensors
from h2osim.traces.trace import Trace


def attention(layers: int = 2, heads: int = 2, n: int = 12, seed: int = 0) -> Any:
    """Rows of a softmax, float32 [layers, heads, n, n]."""
    x = np.random.default_rng(seed).normal(size=(layers, heads, n, n))
    rows = np.tril(np.exp(2 * x))
    return (rows / rows.sum(axis=-1, keepdims=True)).astype(np.float32)


ROWS = attention()


def same(one: Trace, other: Trace) -> None:
    """Every tensor of every layer is the same, and what the manifests say of the rows."""
    assert (one.layers, one.heads, one.kv_heads) == (other.layers, other.heads, other.kv_heads)
    for layer in one.layers:
        assert sorted(one.tensors(layer)) == sorted(other.tensors(layer))
        for name in one.tensors(layer):
            np.testing.assert_array_equal(one.tensor(layer, name), other.tensor(layer, name))
        for field in ("window", "scale", "softcap", "computed_in"):
            assert one.layer_entry(layer).get(field) == other.layer_entry(layer).get(field)


def imported(path: Path, **more: Any) -> Trace:
    out = path.parent / f"{path.name}-trace"
    return h2osim.open_trace(h2osim.import_trace(path, out=out, overwrite=True, **more))


# --- what others dump -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "layers"),
    [
        ({"arr_0": ROWS[0], "arr_1": ROWS[1]}, (0, 1)),
        ({"attentions": ROWS}, (0, 1)),
        ({"attentions": ROWS[:, None]}, (0, 1)),
        ({"layers.11.self_attn": ROWS[1][None], "layers.9.self_attn": ROWS[0][None]}, (9, 11)),
        ({"model.layers.4.attn.1": ROWS[0], "model.layers.7.attn.1": ROWS[1]}, (4, 7)),
        (
            {
                "blocks.0.attn.hook_pattern": ROWS[:1].reshape(1, 2, 12, 12),
                "blocks.1.attn.hook_pattern": ROWS[1:].reshape(1, 2, 12, 12),
                "blocks.0.attn.hook_attn_scores": ROWS[0] - 9,
                "blocks.1.attn.hook_attn_scores": ROWS[1] - 9,
                "blocks.0.hook_resid_pre": np.zeros((1, 12, 32), np.float32),
                "tokens": np.arange(12),
            },
            (0, 1),
        ),
    ],
    ids=["savez", "stacked", "stacked-batch", "names", "nnsight", "transformer-lens"],
)
@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_names_and_shapes_tell_which_layer_is_which(
    arrays: dict[str, Any], layers: tuple[int, ...], ending: str, tmp_path: Path
) -> None:
    path = tmp_path / f"dump{ending}"
    if ending == ".npz":
        np.savez_compressed(path, allow_pickle=False, **arrays)
    else:
        save_file({name: np.ascontiguousarray(one) for name, one in arrays.items()}, path)
    found = imported(path, group_size=2, prompt_len=3, name="mine")
    found.verify()
    same(found, Trace.from_scores(ROWS, group_size=2, layers=layers))
    assert (found.name, found.prompt_len, found.manifest["created_by"][:6]) == ("mine", 3, "h2osim")
    assert found.manifest["provenance"] == {"imported": path.name}


def test_one_layer_and_one_head(tmp_path: Path) -> None:
    path = tmp_path / "dump.npz"
    np.savez(path, allow_pickle=False, **{"blocks.5.attn.hook_pattern": ROWS[0]})
    assert imported(path).layers == (5,)
    np.savez(path, allow_pickle=False, head=ROWS[0, 1])
    same(imported(path), Trace.from_scores(ROWS[0, 1]))


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_precisions(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "dump.npz"
    rows = ROWS.astype(dtype)
    rows = rows / rows.sum(axis=-1, keepdims=True) if dtype == "float64" else rows
    np.savez(path, allow_pickle=False, rows=rows)
    same(imported(path), Trace.from_scores(rows))


def test_bfloat16_of_safetensors(tmp_path: Path) -> None:
    """NumPy has no such type: the file is put together by hand."""
    bits = (ROWS.view(np.uint32) + 0x8000 >> 16).astype("<u2")
    header = json.dumps(
        {"rows": {"dtype": "BF16", "shape": list(bits.shape), "data_offsets": [0, bits.nbytes]}}
    ).encode()
    path = tmp_path / "dump.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bits.tobytes())
    wanted = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(read_safetensors(path)["rows"].read(), wanted)
    found = imported(path)
    same(found, Trace.from_scores(wanted, computed_in="bfloat16"))
    assert found.layer_entry(0)["computed_in"] == "bfloat16"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_transformers_and_torch_save(dtype: str, tmp_path: Path) -> None:
    """`output_attentions` of a tiny model, as tuple, list and dictionary."""
    torch = pytest.importorskip("torch", reason="reads .pt with the extra `record` (torch)")
    tiny_models = pytest.importorskip("tiny_models")
    model = tiny_models.family("llama").to(getattr(torch, dtype))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        given = model(torch.tensor([tiny_models.tokens()]), output_attentions=True).attentions
    wanted = Trace.from_scores(given, group_size=2)
    path = tmp_path / "dump.pt"
    named = {f"blocks.{i}.attn.hook_pattern": one for i, one in enumerate(given)}
    for saved in (given, list(given), {"attentions": given}, named, torch.stack(given)):
        torch.save(saved, path)
        same(imported(path, group_size=2), wanted)
    if dtype == "float32":
        own = h2osim.record(model, tokens=tiny_models.tokens(), out=tmp_path / "own")
        bits = [h2osim.open_trace(own).tensor(1, "scores"), wanted.tensor(1, "scores")]
        a, b = (one.view(np.float16).astype(np.float64) for one in bits)
        limit = 2 * tiny_models.half_ulp(b) + tiny_models.NOISE
        assert (np.abs(a - b) <= limit).all()


def test_what_is_no_attention_is_one_line(tmp_path: Path, run: Run) -> None:
    path, out = tmp_path / "dump.npz", tmp_path / "out"

    def refuses(said: str, *words: str, **arrays: Any) -> None:
        np.savez(path, allow_pickle=False, **arrays)
        fails(run("import", path, "-o", out, *words), str(path), said)

    refuses("found no array that may be attention", x=np.zeros((3, 4)))
    refuses("holds nothing")
    refuses("found no array that 'b*' matches", "--names", "b*", a=ROWS)
    refuses("found several sets of arrays that may be attention, a, b; --names 'a'", a=ROWS, b=ROWS)
    refuses("names that differ in the layer's number alone", a1b1=ROWS[0], a2b2=ROWS[1])
    refuses("a batch of 2 sequences", a0=ROWS, a1=ROWS)
    refuses("layer 1 is [1, 12, 12], expected [2, 12, 12]", a0=ROWS[0], a1=ROWS[0, :1])
    digits = "9" * 5000  # Python itself refuses to read so many
    refuses("expected the number of a layer", **{f"b.{digits}": ROWS[0], "b.1": ROWS[1]})
    nan = ROWS.copy()
    nan[1, 0, 5, 2] = np.nan
    refuses("layer 1, head 0, row 5, column 2: found nan", a=nan)
    refuses("layer 0, head 0, row 0: found sum 0.5, expected 1", a=ROWS / 2)
    refuses("row 0, column 1: found", a=np.full((1, 4, 4), 0.25))
    np.savez(path, allow_pickle=False, a=ROWS)
    fails(run("import", path, "-o", out, "--group-size", 3), "expected a divisor of 2 heads")
    fails(run("import", path, "-o", out, "--prompt-len", 13), "prompt_len: found 13")
    assert [one.name for one in tmp_path.iterdir()] == ["dump.npz"]
    out.mkdir()
    (out / "mine").touch()
    fails(run("import", path, "-o", out), f"{out}: exists already")
    fails(run("import", path, "-o", out, "--overwrite"), f"{out}: exists and is no trace")
    fails(run("import", tmp_path / "no.npz", "-o", tmp_path / "o"), "cannot be read")
    fails(run("import", tmp_path, "-o", tmp_path / "o"), "found the ending ''")


def _in_itself() -> list[Any]:
    """A list in itself, as pickle can write one."""
    again: list[Any] = []
    again.append(again)
    return again


def _deep() -> list[Any]:
    """A list in two thousand others."""
    nested: list[Any] = []
    for _ in range(2000):
        nested = [nested]
    return nested


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("_in_itself()", "found no array that may be attention"),
        ("_deep()", "found tensors more than 32 lists deep"),
        ("rows.to_sparse()", "found a tensor without its numbers"),
        ("rows.to('meta')", "found a tensor without its numbers"),
        ("rows[:, :1, :1].expand(2, 60000, 60000)", "more than is there"),
    ],
)
def test_tensors_that_are_not_all_there_are_one_line(
    made: str, said: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch", reason="reads .pt with the extra `record` (torch)")
    names = {"rows": torch.from_numpy(ROWS[0]), "_in_itself": _in_itself, "_deep": _deep}
    saved, path = eval(made, names), tmp_path / "dump.pt"
    if made == "_deep()":  # torch.save writes none so deep
        monkeypatch.setattr(torch, "load", lambda *_, **__: saved)
        path.touch()
    else:
        torch.save(saved, path)
    fails(run("import", path, "-o", tmp_path / "out"), str(path), said)
    assert [one.name for one in tmp_path.iterdir()] == ["dump.pt"]


def test_a_list_that_is_there_twice_is_taken_once(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="reads .pt with the extra `record` (torch)")
    rows = [torch.from_numpy(one) for one in ROWS]
    torch.save({"attentions": rows, "again": rows}, tmp_path / "dump.pt")
    same(imported(tmp_path / "dump.pt"), Trace.from_scores(ROWS))


@pytest.mark.parametrize("ending", [".npz", ".safetensors", ".pt"])
def test_damage_is_one_line(ending: str, tmp_path: Path, run: Run) -> None:
    path, out = tmp_path / f"dump{ending}", tmp_path / "out"
    if ending == ".npz":
        np.savez_compressed(path, allow_pickle=False, a=ROWS)
    elif ending == ".pt":
        torch = pytest.importorskip("torch", reason="reads .pt with the extra `record` (torch)")
        torch.save(torch.from_numpy(ROWS), path)
    else:
        save_file({"a": ROWS}, path)
    data = path.read_bytes()
    half = data[: len(data) // 2]
    for damage in (b"", b"PK", data[:9], half, b"\xff" * 64, data[: len(data) - 9]):
        path.write_bytes(damage)
        fails(run("import", path, "-o", out), str(path))
        assert not out.exists()


def test_objects_in_files_of_pickle_are_not_made(tmp_path: Path, run: Run) -> None:
    torch = pytest.importorskip("torch", reason="reads .pt with the extra `record` (torch)")
    path, out = tmp_path / "dump.pt", tmp_path / "out"
    torch.save({"a": Made(str(tmp_path / "ran"))}, path)
    fails(run("import", path, "-o", out), "holds more than tensors, and code of others is never")
    objects = np.array([Made(str(tmp_path / "ran"))], dtype=object)
    np.savez(tmp_path / "dump.npz", a=objects)
    fails(run("import", tmp_path / "dump.npz", "-o", out), "no array that may be attention")
    assert not (tmp_path / "ran").exists() and not out.exists()


class Made:
    """Writes a file when it is read from a pickle."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path(self.path).touch, ())


def test_an_array_that_says_it_is_larger_than_it_is(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "dump.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("a.npy", "w") as member:
        about = {"descr": "<f4", "fortran_order": False, "shape": (1 << 20, 1 << 20)}
        np.lib.format.write_array_header_1_0(member, about)
        member.write(bytes(64))
    fails(run("import", path, "-o", tmp_path / "out"), "[1048576, 1048576], more than is there")


# --- and back -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_an_exported_trace_is_the_same_again(ending: str, tmp_path: Path, run: Run) -> None:
    rng = np.random.default_rng(1)
    norms: dict[str, Any] = {
        name: rng.random((2, 1, 12), np.float32) for name in ("v_norm1", "v_norm2", "k_norm2")
    }
    made = {
        "scores": Trace.from_scores(
            ROWS, group_size=2, layers=[4, 2], prompt_len=5, name="täst", **norms,
            tokens={"ids": [*range(12)], "text": ["ö"] * 12},
        ),
        "half": Trace.from_scores(ROWS.astype(np.float16)),
        "qk": Trace.from_qk(
            rng.normal(size=(2, 4, 12, 8)).astype(np.float32),
            rng.normal(size=(2, 2, 12, 8)).astype(np.float32),
            scale=0.3, window=7, softcap=2.0, v=rng.normal(size=(2, 2, 12, 3)).astype(np.float32),
        ),
    }  # fmt: skip
    for name, trace in made.items():
        folder, file, back = (tmp_path / f"{name}{x}" for x in ("", ending, "-back"))
        trace.save(folder)
        assert run("export", folder, "-o", file).err == f"wrote {file}\n"
        assert run("import", file, "-o", back).err == f"wrote {back}\n"
        again = h2osim.open_trace(back)
        again.verify()
        same(again, h2osim.open_trace(folder))
        before = h2osim.open_trace(folder).manifest
        for field in before.keys() - {"layers"}:
            assert again.manifest[field] == before[field], field
        # other programs see plain matrices
        opened: Any = np.load(file) if ending == ".npz" else _numpy(file)
        for layer in trace.layers:
            squares = opened[f"attentions.{layer}"]
            assert squares.dtype == np.float16 and not np.triu(squares, 1).any()
            (unit,) = (u for u in trace.units("layer") if u.layer == layer)
            lower = np.tril_indices(12)
            np.testing.assert_array_equal(squares[:, *lower].view(np.uint16), unit.all_bits())
    fails(run("import", file, "-o", tmp_path / "x", "--group-size", 2), "which says itself")


def _numpy(file: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(file)


def test_an_export_that_was_changed_is_refused(tmp_path: Path, run: Run) -> None:
    path, out = tmp_path / "x.npz", tmp_path / "out"
    h2osim.export_trace(Trace.from_scores(ROWS), path)
    whole = dict(np.load(path))

    def refuses(said: str, **changed: Any) -> None:
        arrays = {name: one for name, one in {**whole, **changed}.items() if one is not None}
        np.savez(path, allow_pickle=False, **arrays)
        fails(run("import", path, "-o", out), str(path), said)
        assert not out.exists()

    row_sum, rows = whole["row_sum.1"], whole["attentions.1"]
    refuses("row_sum.1 is missing", **{"row_sum.1": None})
    refuses("row_sum.1: found float64 [2, 12]", **{"row_sum.1": row_sum.astype(np.float64)})
    refuses("attentions.1: found float64 [0]", **{"attentions.1": None})
    refuses("attentions.1: found float16 [1, 12, 12]", **{"attentions.1": rows[:1]})
    refuses("found a number above the diagonal", **{"attentions.1": rows.swapaxes(1, 2)})
    refuses("head 0, row 0: found sum", **{"attentions.1": rows / np.float16(2)})
    refuses("its manifest: not valid JSON", h2osim=whole["h2osim"][:-3])
    refuses("its manifest: field name is missing", h2osim=np.frombuffer(b"{}", np.int8))
    refuses("found <U1, expected the manifest as int8", h2osim=np.array(["x"]))


def test_an_export_that_names_no_keys_has_them_all_the_same(tmp_path: Path) -> None:
    path, vectors = tmp_path / "x.npz", np.ones((1, 2, 8, 3))
    h2osim.export_trace(Trace.from_qk(vectors, vectors, scale=1.0), path)
    arrays = dict(np.load(path))
    fields = json.loads(arrays["h2osim"].tobytes())
    fields["layers"][0]["tensors"] = []
    arrays["h2osim"] = np.frombuffer(json.dumps(fields).encode(), np.int8)
    np.savez(path, allow_pickle=False, **arrays)
    assert sorted(imported(path).tensors(0)) == ["k", "q"]


def test_export_is_told_what_it_cannot_do_before_it_reads(tmp_path: Path, run: Run) -> None:
    fails(run("export", "prose", "-o", tmp_path / "x.pt"), "found the ending '.pt'")
    fails(run("export", "no-such", "-o", tmp_path / "x.npz"), "neither a folder nor a bundled")
    fails(run("export", "prose", "-o", tmp_path / "no" / "x.npz"), "does not exist")
    with pytest.raises(h2osim.UserError, match=r"found the ending '.pt'"):
        h2osim.export_trace("prose", tmp_path / "x.pt")
    assert not list(tmp_path.iterdir())
