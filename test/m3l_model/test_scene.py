# SPDX-License-Identifier: Apache-2.0
"""The synthetic scene: the same by seed, true to its geometry, and ambiguous as documented."""

from __future__ import annotations

import itertools
import math
import pickle
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from m3l_model.errors import M3LError
from m3l_model.scene import Scene, SceneClass, SceneFrame, camera_matrix, render
from m3l_model.scene_layout import RELIEF_M
from m3l_model.scene_raycast import Box, Cylinder, Item, Shape, Sphere
from m3l_model.scene_sensor import DISPARITY_STEPS, MAX_DEPTH_M, MIN_DEPTH_M, measure_depth, noise_sigma

SEEDS = range(6)
FRAMES = range(0, 150, 15)
BOXES = (SceneClass.CABINET, SceneClass.CRATE)


@pytest.fixture(scope="module")
def scenes() -> dict[int, Scene]:
    return {seed: Scene(seed) for seed in SEEDS}


@pytest.fixture(scope="module")
def frames(scenes: dict[int, Scene]) -> dict[int, list[SceneFrame]]:
    """Ten views of each scene, over 15 s."""
    return {seed: [scene.render(index) for index in FRAMES] for seed, scene in scenes.items()}


def images(frame: SceneFrame) -> bytes:
    return frame.rgb.tobytes() + frame.depth_mm.tobytes() + frame.labels.tobytes()


# --- Reproducible


def test_a_seed_gives_the_same_bytes_in_any_order_and_after_pickling() -> None:
    video = list(render(3, 4, width=160, height=120))
    scene = pickle.loads(pickle.dumps(Scene(3)))
    for index in (2, 0, 3, 1):
        frame = scene.render(index, width=160, height=120)
        assert frame.stamp_offset_ns == video[index].stamp_offset_ns
        assert images(frame) == images(video[index])


def test_seeds_and_frames_differ(frames: dict[int, list[SceneFrame]]) -> None:
    everything = [images(frame) for views in frames.values() for frame in views]
    assert len(set(everything)) == len(everything)


def test_noise_differs_between_frames_of_one_view() -> None:
    scene = Scene(0)
    period = scene.room.path.period_s
    first, again = (scene.render(index, rate_hz=1 / period) for index in (0, 1))
    assert np.array_equal(first.labels, again.labels)
    assert (first.depth_mm != again.depth_mm).mean() > 0.1


# --- Form


@pytest.mark.parametrize(("width", "height"), [(320, 240), (64, 48), (161, 121)])
def test_images_have_the_size_and_types_of_the_topics(width: int, height: int) -> None:
    frame = Scene(1).render(7, width=width, height=height, rate_hz=30)
    assert frame.rgb.shape == (height, width, 3)
    assert frame.depth_mm.shape == frame.labels.shape == (height, width)
    assert [image.dtype.name for image in frame[1:]] == ["uint8", "uint16", "uint8"]
    assert all(image.flags.c_contiguous for image in frame[1:])
    assert frame.stamp_offset_ns == round(7e9 / 30)


def test_camera_matrix_sees_57_degrees() -> None:
    k = camera_matrix(640, 480)
    assert math.degrees(2 * math.atan(320 / k[0, 0])) == pytest.approx(57)
    assert k[0, 0] == k[1, 1]
    assert (k[0, 2], k[1, 2]) == (319.5, 239.5)


def test_label_file_names_the_scene_classes() -> None:
    path = Path(__file__).parents[2] / "config" / "labels" / "demo.yaml"
    classes = yaml.safe_load(path.read_text())["classes"]
    assert [c["name"].upper() for c in classes] == [c.name for c in SceneClass]
    assert [c["ids"] for c in classes] == [[c.value] for c in SceneClass]
    assert len({tuple(c["color"]) for c in classes}) == len(SceneClass)


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(M3LError, match="seed -1"):
        Scene(-1)
    for bad in ({"index": -1}, {"index": 0, "width": 1}, {"index": 0, "rate_hz": 0.0}):
        with pytest.raises(M3LError, match="scene frame"):
            Scene(0).render(**bad)


# --- Content


def test_every_class_is_seen_and_none_prevails(frames: dict[int, list[SceneFrame]]) -> None:
    for seed, views in frames.items():
        share = np.bincount(np.concatenate([view.labels.ravel() for view in views]), minlength=8)
        share = share / share.sum()
        assert share.size == len(SceneClass)
        assert share.min() > 0.002, (seed, share)
        assert share.max() < 0.45, (seed, share)


def test_views_change_over_the_video(frames: dict[int, list[SceneFrame]]) -> None:
    for views in frames.values():
        for before, after in itertools.pairwise(views):
            assert (before.labels != after.labels).mean() > 0.1


@pytest.mark.parametrize("seed", range(8))
def test_camera_moves_smoothly_on_a_closed_path_clear_of_everything(seed: int) -> None:
    room = Scene(seed).room
    poses = [room.path.at(time_s) for time_s in np.arange(0, room.path.period_s, 0.1)]
    for before, after in itertools.pairwise(poses):
        assert np.linalg.norm(after.position - before.position) < 0.08
        cosine = (np.trace(after.rotation.T @ before.rotation) - 1) / 2
        assert math.degrees(math.acos(min(1, cosine))) < 5
    end = room.path.at(room.path.period_s)
    np.testing.assert_allclose(end.position, poses[0].position, atol=1e-9)
    np.testing.assert_allclose(end.rotation, poses[0].rotation, atol=1e-9)

    things = [item for item in room.items if item.label not in (SceneClass.FLOOR, SceneClass.WALL)]
    for position, item in itertools.product((pose.position for pose in poses), things):
        assert outside(item, position[:, None]) > 0.3
    assert all((np.abs(pose.position[:2]) < np.array(room.half) - 0.5).all() for pose in poses)


@pytest.mark.parametrize("seed", range(8))
def test_furniture_stands_in_the_room_and_not_in_other_furniture(seed: int) -> None:
    room = Scene(seed).room
    solids = [item for item in room.items if item.label in (*BOXES, SceneClass.COLUMN, SceneClass.BALL)]
    surfaces = [surface_points(item) for item in solids]
    for points in surfaces:
        assert (np.abs(points[:2]) <= np.array(room.half)[:, None]).all()
        assert points[2].min() >= -1e-9
    for (item, _), (other, points) in itertools.permutations(zip(solids, surfaces, strict=True), 2):
        assert inside(item, points) == 0, (item, other)


def test_furniture_counts() -> None:
    for seed in range(8):
        count = np.bincount([item.label for item in Scene(seed).room.items], minlength=8)
        for label, least, most in [("CABINET", 3, 5), ("CRATE", 3, 5), ("COLUMN", 2, 4), ("BALL", 6, 8)]:
            assert least <= count[SceneClass[label]] <= most
        assert 2 <= count[SceneClass.RUG] <= 3
        assert 6 <= count[SceneClass.PICTURE] <= 8


# --- Geometry and ambiguity


def test_depth_puts_floor_and_rugs_on_one_plane(
    scenes: dict[int, Scene], frames: dict[int, list[SceneFrame]]
) -> None:
    heights: dict[int, list[npt.NDArray[np.float64]]] = {SceneClass.FLOOR: [], SceneClass.RUG: []}
    for (seed, views), label in itertools.product(frames.items(), heights):
        for index, view in zip(FRAMES, views, strict=True):
            heights[label].append(room_points(scenes[seed], index, view, label)[2])
    floor, rug = (np.concatenate(heights[label]) for label in (SceneClass.FLOOR, SceneClass.RUG))
    assert abs(np.median(floor)) < 0.005
    assert np.median(rug) - np.median(floor) == pytest.approx(RELIEF_M, abs=0.003)
    assert np.quantile(np.abs(floor), 0.95) < 0.05
    assert np.std(floor) > RELIEF_M


def test_depth_puts_walls_and_pictures_on_one_plane(
    scenes: dict[int, Scene], frames: dict[int, list[SceneFrame]]
) -> None:
    for label in (SceneClass.WALL, SceneClass.PICTURE):
        gaps = []
        for seed, views in frames.items():
            half = np.array(scenes[seed].room.half)[:, None]
            for index, view in zip(FRAMES, views, strict=True):
                points = room_points(scenes[seed], index, view, label)
                gaps.append((half - np.abs(points[:2])).min(axis=0)[points[2] < 2.3])
        gap = np.concatenate(gaps)
        assert abs(np.median(gap)) < 0.02
        assert np.quantile(np.abs(gap), 0.9) < 0.1


def test_boxes_differ_in_colour_only_and_wood_in_shape_only(frames: dict[int, list[SceneFrame]]) -> None:
    for views in frames.values():
        rgb = np.concatenate([view.rgb.reshape(-1, 3) for view in views]).astype(np.float64) + 1
        labels = np.concatenate([view.labels.ravel() for view in views])
        hue = rgb / rgb.sum(axis=1, keepdims=True)
        floor, cabinet = (np.median(hue[labels == c], axis=0) for c in (SceneClass.FLOOR, SceneClass.CABINET))
        wall, column = (np.median(hue[labels == c], axis=0) for c in (SceneClass.WALL, SceneClass.COLUMN))
        to_cabinet = np.linalg.norm(hue[labels == SceneClass.CRATE] - cabinet, axis=1)
        assert np.linalg.norm(floor - cabinet) < 0.04
        assert np.linalg.norm(wall - column) < 0.02
        assert np.quantile(to_cabinet, 0.1) > 0.08


# --- Sensor


def flat(depth_m: float, shape: tuple[int, int] = (200, 200)) -> npt.NDArray[np.float32]:
    return np.full(shape, depth_m, np.float32)


@pytest.mark.parametrize("depth_m", [0.8, 1.5, 3.0, 5.0])
def test_depth_noise_grows_as_the_kinects(depth_m: float) -> None:
    measured = measure_depth(flat(depth_m), flat(1), 295, np.random.default_rng(0)) / 1000
    measured = measured[measured > 0]
    step = depth_m**2 / DISPARITY_STEPS
    expected = math.hypot(float(noise_sigma(flat(depth_m))[0, 0]), step / math.sqrt(12))
    assert np.mean(measured) == pytest.approx(depth_m, abs=0.1 * expected)
    assert np.std(measured) == pytest.approx(expected, rel=0.15, abs=0.0005)
    values = np.unique(measured)
    assert np.diff(values).min() == pytest.approx(step, rel=0.15, abs=0.001)


def test_depth_out_of_range_is_no_reading(frames: dict[int, list[SceneFrame]]) -> None:
    for depth_m in (0.4, 6.6):
        assert not measure_depth(flat(depth_m), flat(1), 295, np.random.default_rng(0)).any()
    for view in itertools.chain.from_iterable(frames.values()):
        read = view.depth_mm[view.depth_mm > 0]
        assert read.min() >= MIN_DEPTH_M * 1000
        assert read.max() <= MAX_DEPTH_M * 1000


def test_near_edges_shade_the_right_side() -> None:
    depth = flat(4.0)
    depth[:, 80:120] = 1.0
    holes = measure_depth(depth, flat(1), 295, np.random.default_rng(0)) == 0
    band = 295 * 0.075 * (1 / 1.0 - 1 / 4.0)
    assert holes[:, 120 : 120 + int(band) - 1].all()
    assert holes[:, 120 + math.ceil(band) + 2 :].mean() < 0.05
    assert holes[:, :78].mean() < 0.05


def test_grazing_surfaces_lose_most_readings() -> None:
    steep, facing = (
        (measure_depth(flat(2), flat(cosine), 295, np.random.default_rng(0)) == 0).mean()
        for cosine in (0.02, 0.9)
    )
    assert steep > 0.7
    assert facing < 0.05


def test_holes_are_some_and_scattered(frames: dict[int, list[SceneFrame]]) -> None:
    for views in frames.values():
        share = np.array([(view.depth_mm == 0).mean() for view in views])
        assert (share > 0.002).all()
        assert (share < 0.2).all()


# --- Shapes


sizes = st.floats(0.05, 2, allow_subnormal=False)
shapes = st.one_of(
    st.builds(lambda x, y, z: Box((x, y, z)), sizes, sizes, sizes),
    st.builds(Cylinder, sizes, sizes),
    st.builds(Sphere, sizes),
)
angles = st.floats(-3, 3)


@settings(deadline=None)
@given(shapes, angles, angles, st.lists(st.tuples(angles, angles, angles), min_size=1, max_size=20))
def test_rays_hit_the_surface_from_outside(
    shape: Shape, azimuth: float, elevation: float, targets: list[tuple[float, float, float]]
) -> None:
    """Rays at the middle of a shape hit it; whatever is hit is on its surface, and the normal looks back."""
    away = 5 * np.array(
        [
            math.cos(azimuth) * math.cos(elevation),
            math.sin(azimuth) * math.cos(elevation),
            math.sin(elevation),
        ]
    )
    origin = away.astype(np.float32)
    directions = np.array([(0, 0, 0), *targets], np.float32).T - origin[:, None]
    t = shape.distance(origin, directions)
    assert np.isfinite(t[0])
    hit = np.isfinite(t)
    points = origin[:, None] + t[hit] * directions[:, hit]
    item = Item(0, shape, lambda uv, blur: uv, np.zeros(3), np.eye(3))
    assert inside(item, points * 0.998) == hit.sum()
    assert inside(item, points * 1.002) == 0
    normals, uv = shape.surface(points)
    assert uv.shape == (2, hit.sum())
    np.testing.assert_allclose(np.linalg.norm(normals, axis=0), 1, atol=1e-3)
    assert (
        (normals * directions[:, hit]).sum(axis=0) < 0.05 * np.linalg.norm(directions[:, hit], axis=0)
    ).all()


# --- Helpers


def local(item: Item, points: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    return item.rotation.T @ (points - item.center[:, None])


def outside(item: Item, points: npt.NDArray[np.floating]) -> float:
    """The least distance from the points to the item's bounding box."""
    beyond = np.abs(local(item, points)) - np.array(item.shape.half)[:, None]
    return float(np.linalg.norm(np.maximum(beyond, 0), axis=0).min())


def inside(item: Item, points: npt.NDArray[np.floating]) -> int:
    """How many of the points are in the item's volume, by more than a rounding error."""
    x, y, z = local(item, points)
    if isinstance(item.shape, Box):
        within = np.abs(np.stack([x, y, z])) < np.array(item.shape.half)[:, None] - 1e-5
        return int(within.all(axis=0).sum())
    if isinstance(item.shape, Cylinder):
        within = (np.hypot(x, y) < item.shape.radius - 1e-5) & (np.abs(z) < item.shape.half_height - 1e-5)
        return int(within.sum())
    return int((np.sqrt(x * x + y * y + z * z) < item.shape.half[0] - 1e-5).sum())


def surface_points(item: Item) -> npt.NDArray[np.float64]:
    """Points all over the item's surface, in the room: rays from far around, back to its middle."""
    around = np.random.default_rng(0).normal(size=(3, 2000))
    around /= np.linalg.norm(around, axis=0)
    if isinstance(item.shape, Box):
        reach = 1 / np.abs(around / np.array(item.shape.half)[:, None]).max(axis=0)
    elif isinstance(item.shape, Cylinder):
        side = item.shape.radius / np.hypot(around[0], around[1])
        reach = np.minimum(side, item.shape.half_height / np.abs(around[2]))
    else:
        reach = np.full(around.shape[1], item.shape.half[0])
    return item.rotation @ (around * reach) + item.center[:, None]


def room_points(
    scene: Scene, index: int, frame: SceneFrame, label: SceneClass | int
) -> npt.NDArray[np.float64]:
    """The points (3, n), in the room, of readings of that class that lie three pixels from any other class."""
    same = frame.labels == label
    for axis, shift in itertools.product((0, 1), (-3, -1, 1, 3)):
        same &= np.roll(frame.labels, shift, axis) == label
    rows, columns = np.nonzero(same & (frame.depth_mm > 0))
    k = camera_matrix(frame.labels.shape[1], frame.labels.shape[0])
    pixels = np.linalg.inv(k) @ np.stack([columns, rows, np.ones_like(rows)])
    camera = scene.room.path.at(index / 10)
    return camera.rotation @ (pixels * frame.depth_mm[rows, columns] / 1000) + camera.position[:, None]
