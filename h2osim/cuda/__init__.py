"""The CUDA engine: host code that runs the kernels of gpu/ on many units and policies at once.

`direct` replays jobs at their budgets. `curves` replays inclusive policies at every budget in one
pass. Both return the integers and the evictions of the naive engine. The module `bracket` bounds
the offline optimum. Rows of a `qk` trace are computed on the device, in blocks, with the bits that
the CPU computes.
"""

from h2osim.cuda.device import Device, Gpu, available, devices, kernel_text
from h2osim.cuda.run import curves, direct, refusal

__all__ = ["Device", "Gpu", "available", "curves", "devices", "direct", "kernel_text", "refusal"]
