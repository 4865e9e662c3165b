"""What whole curves of recall against budget tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from h2osim.support.errors import UserError

if TYPE_CHECKING:
    import xarray


def budget_for_recall(results: xarray.Dataset, target: float) -> xarray.Dataset:
    """The smallest budget at which each policy reaches a recall.

    Parameters
    ----------
    results
        A replay; with ``budgets="all"`` the answer is exact, else the smallest of those given.
    target
        The recall to reach, above 0 and up to 1.

    Returns
    -------
    xarray.Dataset
        ``budget[policy, layer, unit]``: min {k : recall(k) >= target} for each unit, and
        ``overall[policy]``: the same for the mean recall over all units, when every unit has k. 0
        where no budget replayed reaches it. Curves of policies outside theorem T7 may fall and
        rise; the first crossing counts.

    Raises
    ------
    UserError
        If the target lies outside (0, 1].
    """
    import xarray

    if not 0 < target <= 1:
        raise UserError(f"target recall {target:g}: expected above 0 and up to 1")
    ordered = results["recall"].sortby("budget")
    budgets = ordered["budget"].values

    def first(recall: xarray.DataArray) -> xarray.DataArray:
        reached = recall >= target
        crossing = reached.argmax("budget")
        found = np.where(reached.any("budget"), budgets[crossing.values], 0)
        return crossing.copy(data=found)

    found = {"budget": first(ordered), "overall": first(ordered.mean(("layer", "unit")))}
    dropped = {name: array.drop_vars("fraction", errors="ignore") for name, array in found.items()}
    return xarray.Dataset(dropped, attrs={**results.attrs, "target_recall": target})
