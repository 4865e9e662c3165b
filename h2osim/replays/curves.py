"""What whole curves of recall against budget tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from h2osim.replays import results
from h2osim.support.errors import UserError

if TYPE_CHECKING:
    import xarray


def budget_for_recall(replayed: xarray.Dataset, target: float) -> xarray.Dataset:
    """The smallest budget at which each policy reaches a recall.

    Parameters
    ----------
    replayed
        A replay; with ``budgets="all"`` the answer is exact, else the smallest of those given.
    target
        The recall to reach, above 0 and up to 1.

    Returns
    -------
    xarray.Dataset
        ``least_budget[policy, layer, unit]``: min {k : recall(k) >= target} for each unit, and
        ``least_budget_overall[policy]``: the same for the mean recall over all units, when every
        unit has k. 0 where no budget replayed reaches it. Curves of policies outside theorem T7 may
        fall and rise; the first crossing counts.

    Raises
    ------
    UserError
        If the target lies outside (0, 1].
    """
    if not 0 < target <= 1:
        raise UserError(f"target recall {target:g}: expected above 0 and up to 1")
    recall = replayed["recall"]
    budgets = recall["tokens"] if "tokens" in recall.coords else recall["budget"]

    def first(reached: xarray.DataArray) -> np.ndarray:
        least = budgets.where(reached >= target).min("budget").fillna(0).astype(np.int64)
        return least.transpose(*(dim for dim in reached.dims if dim != "budget")).values

    found = {
        "least_budget": first(recall),
        "least_budget_overall": first(recall.mean(("layer", "unit"))),
    }
    coords = {str(name): c.values for name, c in recall.coords.items() if "budget" not in c.dims}
    return results.assemble(
        "target",
        found,
        coords,
        {**replayed.attrs, "target_recall": target},
        "trace" in replayed.dims,
    )
