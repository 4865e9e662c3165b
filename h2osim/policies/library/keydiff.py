"""KeyDiff: keys that are like all the others go."""

from h2osim.policies.arithmetic import dot
from h2osim.policies.declaration import INF, Array, Policy
from h2osim.policies.inputs import key_direction
from h2osim.policies.parameters import shared


def rank(
    key_direction: Array, key_direction_mean: Array, pos: int, age: int, sinks: int, recent: int
) -> float:
    if age < recent or pos < sinks:
        return INF
    return -dot(key_direction, key_direction_mean)


POLICY = Policy(
    name="keydiff",
    summary="evict the key whose direction is most like the mean direction of the cached keys",
    source="arXiv 2504.15364; kvpress KeyDiffPress",
    params=(shared("recent", 0), shared("sinks", 0)),
    vectors={"key_direction": key_direction},
    needs=("keys",),
    rank=rank,
    notes="The source works through the prompt in blocks; with `when=prompt` this is kvpress's "
    "choice of all of it at once.",
)
