"""Recording on a GPU: the same trace as on a CPU, but for the rounding of float32 sums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="recording needs the extra `record`")
if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

from tiny_models import NOISE, family, half_ulp, squares, tokens  # noqa: E402

import h2osim  # noqa: E402


@pytest.mark.parametrize("generate", [0, 6])
@pytest.mark.parametrize("name", ["llama", "gemma2-softcap-window", "mistral-window", "gpt2"])
def test_a_gpu_records_what_a_cpu_does(name: str, generate: int, tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "tokens": tokens(24 - generate), "generate": generate, "store": "both", "values": True,
        "residual": name == "llama", "pre_rope": name == "llama",
    }  # fmt: skip
    found = {
        device: h2osim.open_trace(
            h2osim.record(family(name), out=tmp_path / device, device=device, **asked)
        )
        for device in ("cpu", "cuda")
    }
    cpu, gpu = found["cpu"], found["cuda"]
    gpu.verify()
    assert gpu.manifest["provenance"]["device"] == "cuda"
    assert gpu.manifest["tokens"] == cpu.manifest["tokens"]
    for layer in cpu.layers:
        assert gpu.tensors(layer) == cpu.tensors(layer)
        wanted = squares(cpu, layer)
        assert (np.abs(squares(gpu, layer) - wanted) <= 2 * half_ulp(wanted) + NOISE).all()
        for tensor in ("q", "k", "v", "lse"):
            # sums of float32 in another order, over three layers
            np.testing.assert_allclose(
                gpu.tensor(layer, tensor), cpu.tensor(layer, tensor), rtol=1e-3, atol=1e-4
            )
