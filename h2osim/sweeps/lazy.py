"""Arrays of a store as xarray sees them: read when they are used."""

from __future__ import annotations

from typing import Any

import numpy as np
from xarray.backends import BackendArray
from xarray.core import indexing

from h2osim.sweeps.store import SweepStore


class StoredArray(BackendArray):
    """One array of a store; a slice of it reads the chunks that it touches."""

    def __init__(self, store: SweepStore, name: str):
        self._store, self._name = store, name
        self.shape = tuple(store.arrays[name]["shape"])
        self.dtype = np.dtype(store.arrays[name]["data_type"])

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        """The values at a key of xarray's."""
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.BASIC, self._part
        )

    def _part(self, key: tuple[int | slice, ...]) -> np.ndarray:
        """Integers, and slices of any step: read what they span, then pick."""
        spans: list[slice] = []
        picks: list[int | np.ndarray] = []
        for one, size in zip(key, self.shape, strict=True):
            if not isinstance(one, slice):
                spans.append(slice(int(one), int(one) + 1))
                picks.append(0)
                continue
            places = range(*one.indices(size))
            low, high = (min(places), max(places) + 1) if places else (0, 0)
            spans.append(slice(low, high))
            picks.append(np.array(places, int) - low)
        found = self._store.read(self._name, tuple(spans))
        for axis in reversed(range(found.ndim)):
            found = found.take(picks[axis], axis=axis)
        return found


def lazy(store: SweepStore, name: str) -> indexing.LazilyIndexedArray:
    """An array of a store, for an xarray Variable."""
    return indexing.LazilyIndexedArray(StoredArray(store, name))
