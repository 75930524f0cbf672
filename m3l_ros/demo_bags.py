# SPDX-License-Identifier: Apache-2.0
"""The demo's two recordings: rooms with few labels to train on, and other rooms, labelled throughout, held out."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from m3l_model.bag_writer import BagWriter
from m3l_model.scene import Scene, SceneFrame, camera_matrix

WIDTH, HEIGHT = 320, 240
RATE_HZ = 10.0
START_NS = 1_700_000_000_000_000_000
FRAME_ID = "camera_color_optical_frame"
SEEDS_PER_DEMO = 1000
HELD_OUT_OFFSET = 500


@dataclass(frozen=True)
class Recording:
    """A drive through rooms: ``frames_per_room`` consecutive frames of each, ``labelled`` of all frames with labels."""

    rooms: tuple[int, ...]
    frames_per_room: int
    labelled: int

    @property
    def frames(self) -> int:
        """How many frames there are."""
        return len(self.rooms) * self.frames_per_room

    def labelled_indices(self) -> set[int]:
        """Give the frames that carry labels, evenly spread."""
        step = self.frames / self.labelled
        return {int((i + 0.5) * step) for i in range(self.labelled)}

    def plan(self) -> list[tuple[int, int]]:
        """Give room seed and frame number within the room of every frame."""
        return [(room, index) for room in self.rooms for index in range(self.frames_per_room)]


def train_recording(seed: int) -> Recording:
    """Sixteen rooms, thirty frames of each, eight labelled frames: frames without labels cost little."""
    first = seed * SEEDS_PER_DEMO
    return Recording(tuple(range(first, first + 16)), frames_per_room=30, labelled=8)


def held_out_recording(seed: int) -> Recording:
    """Five other rooms, thirty frames of each, all labelled; no room ends with a third of the recording."""
    first = seed * SEEDS_PER_DEMO + HELD_OUT_OFFSET
    return Recording(tuple(range(first, first + 5)), frames_per_room=30, labelled=150)


def write_recording(recording: Recording, path: Path, workers: int) -> None:
    """Render a recording, in worker processes, into a bag.

    Raises:
        M3LError: the bag exists or cannot be written.
    """
    k = camera_matrix(WIDTH, HEIGHT)
    labelled = recording.labelled_indices()
    with BagWriter(path) as bag, ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        rendered: Iterable[SceneFrame] = pool.map(_render, recording.plan(), chunksize=5)
        frames = tqdm(
            rendered, total=recording.frames, desc=f"render {path.name}", unit="frame", mininterval=1
        )
        for index, frame in enumerate(frames):
            stamp_ns = START_NS + round(index * 1e9 / RATE_HZ)
            labels = frame.labels if index in labelled else None
            bag.write_frame(stamp_ns, FRAME_ID, frame.rgb, frame.depth_mm, labels, k)


def _render(place: tuple[int, int]) -> SceneFrame:
    room, index = place
    return _scene(room).render(index, width=WIDTH, height=HEIGHT, rate_hz=RATE_HZ)


@lru_cache(maxsize=2)
def _scene(room: int) -> Scene:
    return Scene(room)
