"""On a GPU: a grid of settings over long texts, with the same evictions as on the CPU

Every engine gives the same evictions and the same recall, bit for bit, so what is worth asking of a
GPU is speed. Needs the extra `gpu-cuda12` or `gpu-cuda13`; on a machine without a GPU the same
script runs on the CPU and says so.
"""

import time

import numpy as np

import h2osim

# The engine is an option of each call. Where a GPU or CuPy is missing, `cuda` is
# refused in a line.
engine = "cuda"
try:
    h2osim.replay(h2osim.synth("powerlaw", 64), "h2o", 8, engine=engine)
except h2osim.UserError as missing:
    engine = "auto"
    print("on the CPU:", missing)

# A trace of any length can be made where no model is at hand: attention with heavy
# tokens whose weights follow a power law, two layers of three heads that share one
# cache.
tokens = 4096 if engine == "cuda" else 512
trace = h2osim.synth("powerlaw", tokens, seed=0, heads=3, group_size=3, layers=2)

# Settings are a grid: `first..last:step` are values, `|` separates alternatives. Two
# policies here, nine settings, at four budgets.
grid = ["h2o:recent=0..48:16,scores=full|cached", "tova"]
budgets = [32, 64, 128, 256]

# What this engine needs: the first call also compiles.
for round_ in ("with compilation", "compiled"):
    start = time.perf_counter()
    swept = h2osim.sweep(trace, grid, budgets, engine=engine)
    print(f"{round_}: {time.perf_counter() - start:.2f} s")
print(swept["recall"].mean("unit").to_pandas().round(4))

# The definition of every number is the naive engine, a few lines of NumPy a step. One
# setting of the grid by it and by the engine above: equal, not close. (With few tokens:
# it is slow.)
short = h2osim.synth("powerlaw", 256, seed=1, heads=3, group_size=3)
ours = h2osim.replay(short, "h2o:recent=16", [32, 64], engine=engine, evictions=True)
definition = h2osim.replay(short, "h2o:recent=16", [32, 64], engine="naive", evictions=True)
np.testing.assert_array_equal(ours["recall"], definition["recall"])
np.testing.assert_array_equal(ours["evicted_at"], definition["evicted_at"])
print("every eviction is that of the definition")
