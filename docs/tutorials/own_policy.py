"""A policy of your own: declare it, hold it against others, have it checked

A policy is a few pure functions of numbers. The same declaration runs in every engine, on the GPU
and in a decoding model. The guide [Add a policy](../add-a-policy.md) has the whole of it.
"""

import numpy as np

import h2osim
from h2osim import Param, Policy
from h2osim.policies.declaration import INF
from h2osim.policies.parameters import shared

# The idea: H2O adds up all the attention that a token ever got, so what was important
# once stays long. Here a token's state is a pair: its sum, and the step at which it
# last got at least `least` of a row. A token is worth its sum, less and less the longer
# it was left alone, and a half after `halflife` steps. The newest tokens have had no
# time to be attended: as H2O's they are safe.


def update(
    total: float, seen: float, a: float, t: int, least: float
) -> tuple[float, float]:
    return total + a, float(t) if a >= least else seen


def init(t: int) -> tuple[float, float]:
    return 0.0, float(t)


def rank(
    total: float, seen: float, t: int, age: int, recent: int, halflife: int
) -> float:
    if age < recent:
        return INF
    return total / (1.0 + (t - seen) / halflife)


# A token that enters has the state that `init` says; then `update` runs for every
# cached token, and the tokens of least `rank` leave until the budget is met. Parameters
# have a default and a range, in which every value given by a user is checked; `recent`
# is one that many policies share, a quarter of the budget here.
mine = Policy(
    name="fading-h2o",
    summary="accumulated attention, which fades while a token is left alone",
    source="tutorial",
    params=(
        shared("recent", 0.25),
        Param("halflife", 64, "steps after which it is worth half", low=1, high=4096),
        Param("least", 0.01, "what of a row counts as attention", "float", 0.0, 1.0),
    ),
    state=("total", "seen"),
    init=init,
    update=update,
    rank=rank,
)

# Against the others, as any policy: with defaults, and with parameters as a sweep
# writes them.
trace = h2osim.open_trace("prose")
policies = [mine, mine.with_params(halflife=16), "h2o", "tova"]
found = h2osim.replay(trace, policies, [0.05, 0.2])
print(found["recall"].mean(["layer", "unit"]).to_pandas().round(4))

# Is it what it says? `naive` is the definition, step by step in NumPy; the compiled
# engine has to evict the same tokens after the same steps. `h2osim policies FILE
# --check` does this for a file, on drawn traces, and looks for divisions by zero and
# ranks that decide nothing.
short = h2osim.synth("powerlaw", 128, seed=3)
naive, numba = (
    h2osim.replay(short, mine, 16, engine=engine, evictions=True)
    for engine in ("naive", "numba")
)
np.testing.assert_array_equal(naive["evicted_at"], numba["evicted_at"])
print("both engines evict the same tokens")

# And how far is it from what any policy could keep?
best = h2osim.optimum(trace, [0.05, 0.2])["recall"].mean()
print(f"mean recall {found.recall.isel(policy=0).mean():.3f}, of the optimum {best:.3f}")
