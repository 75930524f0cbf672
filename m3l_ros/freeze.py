# SPDX-License-Identifier: Apache-2.0
"""Tells a depth camera that hangs, and repeats its last image under new stamps, from one that works."""

from __future__ import annotations

from typing import Any

import numpy as np

_SAMPLES = 256


class FreezeWatch:
    """Compares each image of a stream with the one before. Not thread-safe.

    Real sensors are noisy: two of their images are never the same, not even of a scene that stands still.
    """

    def __init__(self) -> None:
        self._image: Any = None
        self._sample: bytes = b""
        self._since = 0.0
        self._frozen_for = 0.0

    @property
    def frozen_for(self) -> float:
        """How long the latest image has been repeated, s; 0 where it differs from the one before."""
        return self._frozen_for

    def add(self, image: Any, now: float) -> None:
        """Take the next image.

        Args:
            image: message with ``data``, a buffer of bytes; it is kept until the next one differs.
            now: steady time, s.
        """
        pixels = np.frombuffer(image.data, np.uint8)
        sample = pixels[:: max(pixels.size // _SAMPLES, 1)].tobytes()
        # Nearly all that differ do so in the sample already.
        if sample == self._sample and self._image is not None and self._is_same(pixels):
            self._frozen_for = now - self._since
        else:
            self._image, self._sample, self._since, self._frozen_for = image, sample, now, 0.0

    def _is_same(self, pixels: np.ndarray) -> bool:
        return np.array_equal(pixels, np.frombuffer(self._image.data, np.uint8))
