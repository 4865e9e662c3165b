"""The CUDA engine: the kernels of gpu/, many units and configurations at once.

``direct`` replays jobs at their budgets, ``curves`` every budget of inclusive policies in one pass;
both give the integers and the evictions of the naive engine. `bracket` bounds the offline optimum.
Rows of a `qk` trace are made on the device, block by block, with the bits that `rows.py` gives.
"""

from h2osim.cuda.device import Device, Gpu, available, devices, kernel_text
from h2osim.cuda.run import curves, direct, refusal

__all__ = ["Device", "Gpu", "available", "curves", "devices", "direct", "kernel_text", "refusal"]
