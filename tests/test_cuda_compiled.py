"""All CUDA text compiles, for every architecture, and keeps to the limits of a device."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from cuda_cases import DIRECT

from h2osim import cuda
from h2osim.cuda import nvrtc
from h2osim.cuda.device import OPTIONS
from h2osim.cuda.kernels.depths import depths_shape
from h2osim.cuda.kernels.errors import errors_shape
from h2osim.cuda.kernels.residuals import residuals_shape
from h2osim.cuda.kernels.stack import stack_shape
from h2osim.policies.registry import all_policies

ARCHITECTURES = ("80", "90", "100")


class Big:
    """The numbers of a GPU, for choosing constants."""

    warp, threads, shared = 32, 1024, 227 * 1024


def kernel_texts() -> dict[str, str]:
    """Every kernel as it is compiled on a GPU, and every policy's rules with the direct kernel."""
    device: cuda.Device = Big()  # type: ignore[assignment]
    found = {
        "masses": cuda.kernel_text("masses", {"T": 256}),
        "rows": cuda.kernel_text("rows", {"T": 256, "SIDE": 16, "TILE": 64}),
        "bracket": cuda.kernel_text("bracket", {"T": 256, "HEADS": 2}),
        "random_rows": cuda.kernel_text("random_rows", {"T": 256}),
    }
    for name, n, heads, more, together in (
        ("decay", 2048, 1, 0, 2), ("decay", 4096, 1, 1, 1), ("tova", 300, 4, 1, 3),
        ("h2o-mean", 100, 1, 0, 1), ("vatp", 1000, 2, 1, 1),
    ):  # fmt: skip
        policy = all_policies()[name]
        shape = depths_shape(device, n, heads, len(policy.state), together, n)
        shape.pop("bytes")
        plain = int(name == "decay")
        found[f"depths {name} {n}"] = cuda.kernel_text(
            "depths", {**shape, "PLAIN": plain, "EVENTS": more}, policy
        )
    for size in (0, 64, 256, 600):
        shape = errors_shape(device, 2048, 3, size, 1)
        found[f"errors {size}"] = cuda.kernel_text("errors", shape)
        for name in ("h2o", "lazy", "h2o-lmeval"):
            text = cuda.kernel_text("budget_errors", shape, all_policies()[name])
            found[f"errors {size} {name}"] = text
    for heads, size in ((1, 64), (3, 64), (9, 128)):
        shape = residuals_shape(device, 2048, heads, size, 1)
        found[f"residuals {heads} {size}"] = cuda.kernel_text("residuals", shape)
        for name in ("h2o", "h2o-lmeval"):
            text = cuda.kernel_text("budget_residuals", shape, all_policies()[name])
            found[f"residuals {heads} {size} {name}"] = text
    for name in DIRECT:
        policy = all_policies()[name]
        found[f"direct {name}"] = cuda.kernel_text("direct", {"T": 128}, policy)
    for name, n, together in (("h2o", 2048, 1), ("decay", 4096, 4), ("lazy", 40000, 1)):
        shape = stack_shape(device, all_policies()[name], n, together)
        shape.pop("bytes")
        shape |= {"C": together, "HEADS": 2, "EVENTS": 1, "ORDERS": int(name == "h2o")}
        found[f"stack {name}"] = cuda.kernel_text("stack", shape, all_policies()[name])
    return found


@pytest.mark.nightly
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_cuda_text_compiles(architecture: str, tmp_path: Path) -> None:
    texts = kernel_texts()
    if architecture != "90":  # the rules are plain arithmetic: once each is enough
        rules = [f"direct {name}" for name in DIRECT if name not in ("h2o", "lazy")]
        texts = {name: text for name, text in texts.items() if name not in rules}
    if nvrtc.library():
        for name, text in texts.items():
            said = nvrtc.errors(text, architecture)
            assert not said, (name, said)
        return
    nvcc = shutil.which("nvcc")
    if not nvcc:
        pytest.skip("neither nvrtc (pip install nvidia-cuda-nvrtc) nor nvcc")
    for i, (name, text) in enumerate(texts.items()):
        source = tmp_path / f"{i}.cu"
        source.write_text(text)
        command = [nvcc, f"-arch=sm_{architecture}", *OPTIONS, "-cubin", "-o"]
        done = subprocess.run(
            [*command, str(tmp_path / "out"), str(source)], capture_output=True, text=True
        )
        assert done.returncode == 0, (name, done.stderr)
