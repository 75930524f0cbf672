# SPDX-License-Identifier: Apache-2.0
"""Writes images with times as an MP4 video that runs as fast as they were taken."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
import numpy.typing as npt

from m3l_model.errors import M3LError

_CODEC = "mp4v"
_LONGEST_HOLD = 10_000_000_000
_SUFFIX = ".mp4"


class VideoError(M3LError):
    """A video that cannot be written here."""


class VideoWriter:
    """Writes a video; a context manager.

    An image is shown until the next one's time; a gap of more than 10 s is skipped, and a clock that goes back by more
    is followed. The file bears its name when it is whole: until then a hidden one lies beside it, which is removed when
    the context is left by an exception.

    Args:
        path: ends in .mp4; an older file is replaced.
        period_ns: time from one image to the next, which the frame rate follows.

    Raises:
        VideoError: another ending, no such folder, or OpenCV writes no MP4 here.
    """

    def __init__(self, path: Path, period_ns: int) -> None:
        if path.suffix != _SUFFIX:
            raise VideoError(f"{path}: the video is an MP4 file; give it a name in {_SUFFIX}")
        if not path.parent.is_dir():
            raise VideoError(f"{path}: its folder does not exist")
        self._path = path
        self._unfinished = path.parent / f".{path.stem}.unfinished{_SUFFIX}"
        self._period_ns = max(period_ns, 1)
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self._start_ns = 0
        self._written = 0
        self._latest: npt.NDArray[np.uint8] | None = None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._latest is not None and exc_type is None:
            self._write(self._latest)
        if self._writer is not None:
            self._writer.release()
            self._writer = None
            if exc_type is None:
                self._unfinished.replace(self._path)
        self._unfinished.unlink(missing_ok=True)

    def add(self, rgb: npt.NDArray[np.uint8], at_ns: int) -> None:
        """Show an image, (H, W, 3) uint8 RGB, from then on; it is scaled to the size of the first one."""
        if self._latest is None:
            self._open(rgb)
            self._start_ns = at_ns
        else:
            ahead_ns = at_ns - self._start_ns - self._written * self._period_ns
            if not -_LONGEST_HOLD < ahead_ns < _LONGEST_HOLD:
                ahead_ns = self._period_ns
                self._start_ns = at_ns - (self._written + 1) * self._period_ns
            for _ in range(round(ahead_ns / self._period_ns)):
                self._write(self._latest)
        self._latest = rgb

    def _open(self, rgb: npt.NDArray[np.uint8]) -> None:
        height, width = rgb.shape[:2]
        self._size = (width + width % 2, height + height % 2)  # the codec has none that is odd
        writer = cv2.VideoWriter(
            str(self._unfinished), cv2.VideoWriter.fourcc(*_CODEC), 1e9 / self._period_ns, self._size
        )
        if not writer.isOpened():
            raise VideoError(
                f"{self._path}: OpenCV {cv2.__version__} writes no MP4 here; leave out --video, or pip install "
                "opencv-python-headless into an environment of its own"
            )
        self._writer = writer

    def _write(self, rgb: npt.NDArray[np.uint8]) -> None:
        assert self._writer is not None
        fitting = (
            rgb
            if rgb.shape[1::-1] == self._size
            else cv2.resize(rgb, self._size, interpolation=cv2.INTER_AREA)
        )
        self._writer.write(cv2.cvtColor(fitting, cv2.COLOR_RGB2BGR))
        self._written += 1
