"""Anomaly maps that are enlarged when they are read, so that one at a time is in memory.

A map of 24 megapixels takes 96 MB, before it is enlarged 0.3 MB.
"""

from collections.abc import Callable, Sequence
from typing import overload

import numpy as np
from jaxtyping import Float32

from efficientad_jax.data.decoding import resize_map

Maps = Sequence[Float32[np.ndarray, "_ _"]]
# Resizes a map to the size of its image.
Enlarge = Callable[[np.ndarray, tuple[int, int]], np.ndarray]


class Enlarged(Sequence[np.ndarray]):
    """Maps at the sizes of their images."""

    def __init__(
        self, maps: Maps, sizes: Sequence[tuple[int, int]], enlarge: Enlarge = resize_map
    ) -> None:
        """Takes the maps at their own sizes, and height and width of each image in pixels."""
        self._maps, self._sizes, self._enlarge = maps, sizes, enlarge

    def __len__(self) -> int:
        return len(self._maps)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | Sequence[np.ndarray]:
        if isinstance(index, slice):
            return Enlarged(self._maps[index], self._sizes[index], self._enlarge)
        return self._enlarge(self._maps[index], self._sizes[index])


class Chosen(Sequence[np.ndarray]):
    """Some of other maps, which are read when these are."""

    def __init__(self, maps: Maps, indices: Sequence[int]) -> None:
        """Takes all maps, and which of them to show."""
        self._maps, self._indices = maps, indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | Sequence[np.ndarray]:
        if isinstance(index, slice):
            return Chosen(self._maps, self._indices[index])
        return self._maps[self._indices[index]]
