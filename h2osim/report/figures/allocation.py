"""How slots are split over layers and units, against equal shares."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from h2osim.report.figures.drawing import PLAIN, Look, canvas, finish, tick_places

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

#: Cells of a panel that are wide enough for their number.
_NUMBERED = 120
_MOST_TICKS = 16


def against_equal(slots: np.ndarray) -> np.ndarray:
    """log2 of a unit's slots over its equal share, of the last two axes [layers, units].

    1 is twice the equal share, -1 half of it, -inf no slot.
    """
    equal = slots.mean(axis=(-2, -1), keepdims=True)
    with np.errstate(divide="ignore"):
        return np.log2(slots / equal)


def allocation_figure(found: xr.Dataset, title: str | None = None, look: Look = PLAIN) -> Figure:
    """Heat maps of an allocation's largest total over layer and unit, a panel a policy and split.

    Colours say how a unit's slots differ from equal shares, on one diverging scale: white is the
    equal share, each step of it a factor of two. Cells hold the slots where there is room.
    """
    found = found.isel(budget=int(found["budget"].values.argmax()))
    unequal = [str(name) != "equal" for name in found["split"].values]
    found = found.isel(split=np.flatnonzero(unequal)) if any(unequal) else found
    policies, rules = found["policy"].values, found["split"].values
    layers, units = found["layer"].values, found["unit"].values
    row = 0.28 if len(layers) <= 12 else 0.16
    size = 2.2 + 1.9 * len(rules), 1.1 + (0.7 + row * len(layers)) * len(policies)
    figure = canvas(*size, look)
    panels = figure.subplots(len(policies), len(rules), squeeze=False, sharex=True, sharey=True)
    slots = found["slots"].transpose("policy", "split", "layer", "unit").values
    lost = found["overall"].transpose("policy", "split").values
    ratio = against_equal(slots)
    limit = float(np.clip(np.ceil(np.abs(ratio[np.isfinite(ratio)]).max(initial=1)), 1, 4))
    for (i, r), axes in np.ndenumerate(panels):
        image = axes.imshow(
            np.clip(ratio[i, r], -limit, limit), vmin=-limit, vmax=limit, cmap="PuOr_r",
            aspect="auto",
        )  # fmt: skip
        for (y, x), count in np.ndenumerate(slots[i, r]):
            if slots[i, r].size <= _NUMBERED:
                colour = "white" if abs(ratio[i, r, y, x]) > 0.65 * limit else "black"
                axes.text(x, y, count, ha="center", va="center", fontsize=7, color=colour)
        above = f"{policies[i]}\n" if len(policies) > 1 else ""
        axes.set_title(f"{above}{rules[r]}: loses {lost[i, r]:.3g}", loc="left", fontsize="small")
        tick_places(axes.yaxis, layers, _MOST_TICKS)
        tick_places(axes.xaxis, units, _MOST_TICKS)
    for axes in panels[:, 0]:
        axes.set_ylabel("layer")
    for axes in panels[-1]:
        axes.set_xlabel("unit")
    bar = figure.colorbar(
        image, ax=panels, label="slots, times the equal share", extend="both", aspect=30
    )
    at = np.arange(-limit, limit + 1).tolist()
    bar.set_ticks(at, labels=[f"{2.0**x:g}" if x >= 0 else f"1/{2.0**-x:g}" for x in at])
    return finish(figure, title, look)
