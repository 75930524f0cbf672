# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gc
import multiprocessing
import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.stores import ros2_jazzy as ros
from torch.utils.data import DataLoader

from m3l_model.bag_dataset import RgbdBagDataset, Sample
from m3l_model.bag_storage import BagError, new_memory
from m3l_model.bag_writer import BagWriter
from m3l_model.bags import BagFrames, Pairing, Topics
from m3l_model.cdr import COMPRESSED_IMAGE
from m3l_model.label_files import open_label_files
from m3l_model.labels import IGNORE_ID, LabelError, LabelSet
from m3l_model.shared_batches import SLABS, CollateError, LazySamples, SharedCollate

SECOND = 1_000_000_000
HEIGHT, WIDTH = 12, 16
FRAMES = 20
LABELS = LabelSet.generic(5)
ABSENT, EMPTY = range(8, 11), (15,)


def rgb_image(seed: int, height: int = HEIGHT) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, WIDTH, 3), np.uint8)


def depth_image(seed: int, height: int = HEIGHT) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 9000, (height, WIDTH), np.uint16)


def label_image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 5, (HEIGHT, WIDTH), np.uint8)


def write_bag(path: Path, first_seed: int = 0, height: int = HEIGHT, labels: bool = True) -> Path:
    """20 frames at 10 Hz: no depth in frames 8 to 10, depth without reading in 15, labels in every fifth."""
    with BagWriter(path) as writer:
        for index in range(FRAMES):
            seed = first_seed + index
            depth = None if index in ABSENT else depth_image(seed, height) * (index not in EMPTY)
            truth = label_image(seed) if labels and index % 5 == 0 else None
            writer.write_frame(
                (index + 10) * SECOND // 10, "camera", rgb_image(seed, height), depth, truth, np.eye(3)
            )
    return path


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("bags")
    return [write_bag(folder / "hall"), write_bag(folder / "kitchen", 100)]


@pytest.fixture(scope="module")
def compressed_bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bags") / "compressed"
    typestore = get_typestore(Stores.ROS2_JAZZY)
    with BagWriter(path) as writer:
        for index in range(FRAMES):
            stamp_ns = (index + 10) * SECOND // 10
            header = ros.std_msgs__msg__Header(
                ros.builtin_interfaces__msg__Time(*divmod(stamp_ns, SECOND)), "camera"
            )
            images = {
                "/depth/image/compressedDepth": (
                    "16UC1; compressedDepth png",
                    np.concatenate(
                        [np.zeros(12, np.uint8), cv2.imencode(".png", depth_image(index))[1].ravel()]
                    ),
                ),
                "/rgb/image/compressed": (
                    "rgb8; png compressed bgr8",
                    cv2.imencode(".png", rgb_image(index)[..., ::-1])[1].ravel(),
                ),
            }
            for topic, (form, data) in images.items():
                message = ros.sensor_msgs__msg__CompressedImage(header, form, data)
                serialized = typestore.serialize_cdr(message, COMPRESSED_IMAGE)
                writer.write_serialized(topic, COMPRESSED_IMAGE, stamp_ns, serialized)
    return path


# Samples


def test_a_sample_is_a_frame_of_one_of_the_bags(bags: list[Path]) -> None:
    dataset = RgbdBagDataset(bags, LABELS)

    assert len(dataset) == 2 * FRAMES
    assert dataset.labelled.tolist() == [index % 5 == 0 for index in range(FRAMES)] * 2
    for position in (0, 7, 9, 15, 19, 20, 39, -1):
        sample = dataset[position]
        bag, index = divmod(position % (2 * FRAMES), FRAMES)
        seed = 100 * bag + index
        assert (sample.bag, sample.stamp_ns) == (bag, (index + 10) * SECOND // 10)
        np.testing.assert_array_equal(sample.rgb, rgb_image(seed))
        absent = index in ABSENT
        # The first frame is not kept waiting for depth, but depth was recorded before it.
        expected = np.zeros((HEIGHT, WIDTH)) if absent or index in EMPTY else depth_image(seed)
        np.testing.assert_array_equal(sample.depth, expected)
        assert sample.depth.dtype == np.uint16
        assert sample.missing.tolist() == [False, absent or index in EMPTY]
        assert sample.labelled == (index % 5 == 0)
        np.testing.assert_array_equal(
            sample.labels, label_image(seed) if sample.labelled else np.full((HEIGHT, WIDTH), IGNORE_ID)
        )
    with pytest.raises(IndexError, match="sample 40 of 40"):
        dataset[40]


def test_random_access_gives_what_reading_in_order_gives(bags: list[Path]) -> None:
    dataset = RgbdBagDataset(bags, LABELS)
    in_order = [dataset[position] for position in range(len(dataset))]
    for position in np.random.default_rng(0).permutation(len(dataset)).tolist():
        for one, other in zip(dataset[position], in_order[position], strict=True):
            np.testing.assert_array_equal(one, other)


def test_without_a_label_set_no_frame_is_labelled(bags: list[Path]) -> None:
    dataset = RgbdBagDataset(bags)
    assert not dataset.labelled.any()
    assert not dataset[0].labelled


def test_an_id_outside_of_the_set_is_named_with_the_bag(bags: list[Path]) -> None:
    dataset = RgbdBagDataset(bags, LabelSet.generic(3))
    with pytest.raises(LabelError, match=rf"{bags[0]} at {SECOND}: ids outside label set .*3 \(\d+ pixels\)"):
        dataset[0]


def test_label_files_go_before_label_images(bags: list[Path], tmp_path: Path) -> None:
    (tmp_path / "masks" / "kitchen").mkdir(parents=True)
    for name, value in ((f"{SECOND}.png", 1), (f"kitchen/{11 * SECOND // 10}.png", 2)):
        cv2.imwrite(str(tmp_path / "masks" / name), np.full((HEIGHT, WIDTH), value, np.uint8))
    dataset = RgbdBagDataset(bags, LABELS, open_label_files(tmp_path / "masks", LABELS))

    assert np.flatnonzero(dataset.labelled).tolist() == [0, 5, 10, 15, 20, 21, 25, 30, 35]
    assert {*dataset[0].labels.ravel()} == {*dataset[20].labels.ravel()} == {1}
    assert {*dataset[21].labels.ravel()} == {2}
    np.testing.assert_array_equal(dataset[5].labels, label_image(5))


def test_the_ignore_id_of_a_label_set_becomes_that_of_all(bags: list[Path]) -> None:
    labels = LabelSet("half", LABELS.classes[:2], LABELS.colors[:2], {0: 0, 1: 1, 2: 77, 3: 77, 4: 77}, 77)
    np.testing.assert_array_equal(
        RgbdBagDataset(bags, labels)[5].labels, np.where(label_image(5) < 2, label_image(5), IGNORE_ID)
    )


def test_topics_and_pairing_may_be_chosen(bags: list[Path]) -> None:
    topics = Topics(rgb="/camera/color/image_raw", depth="/camera/aligned_depth_to_color/image_raw")
    dataset = RgbdBagDataset([BagFrames.open(bags[0], topics, Pairing(slop=0.2))], LABELS)
    assert not dataset.labelled.any()
    assert not dataset[8].missing.any()  # the depth of a neighbour


def test_depth_that_is_missing_has_the_kind_of_that_which_is_not(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "half") as writer:
        for index in range(4):
            stamp_ns = SECOND + index * SECOND // 10
            if index != 2:
                depth = depth_image(index)[::2, ::2]
                writer.write_depth("/camera/depth/image_raw", stamp_ns, "camera", np.ascontiguousarray(depth))
            writer.write_rgb("/camera/color/image_raw", stamp_ns, "camera", rgb_image(index))
    dataset = RgbdBagDataset([tmp_path / "half"])
    assert dataset[2].missing.tolist() == [False, True]
    assert (dataset[2].depth.shape, dataset[2].depth.dtype) == (
        dataset[1].depth.shape,
        dataset[1].depth.dtype,
    )


def test_a_bag_without_depth_gives_masked_depth(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "colour") as writer:
        writer.write_rgb("/camera/color/image_raw", SECOND, "camera", rgb_image(0))
    dataset = RgbdBagDataset([tmp_path / "colour"])
    assert len(dataset) == 1
    sample = dataset[0]
    assert sample.missing.tolist() == [False, True]
    assert sample.depth.shape == (HEIGHT, WIDTH)


def test_a_copy_reads_by_itself(bags: list[Path]) -> None:
    dataset = RgbdBagDataset(bags, LABELS)
    before = dataset[3]
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copy[3].rgb, before.rgb)
    assert copy.labelled.tolist() == dataset.labelled.tolist()


# Batches


class Both(NamedTuple):
    """What the doubling transform below makes of a sample."""

    rgb: np.ndarray
    stamp_ns: int


def double(sample: Sample) -> Both:
    return Both(sample.rgb // 2, sample.stamp_ns)


def batches(
    dataset: RgbdBagDataset, workers: int, positions: list[list[int]], context: str | None = None
) -> Iterator[Any]:
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=positions,
        num_workers=workers,
        collate_fn=SharedCollate(dataset, max(map(len, positions)), workers),
        multiprocessing_context=context if workers else None,
    )
    return iter(loader)


def shuffled(count: int, size: int) -> list[list[int]]:
    order = np.random.default_rng(1).permutation(count).tolist()
    return [order[at : at + size] for at in range(0, count, size)]


def assert_same_batch(batch: Any, samples: list[Any]) -> None:
    for name, tensor, column in zip(batch._fields, batch, zip(*samples, strict=True), strict=True):
        np.testing.assert_array_equal(tensor.numpy(), np.stack(column), err_msg=name)
        assert torch.is_tensor(tensor)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_batches_of_workers_are_those_of_the_samples(bags: list[Path], workers: int, size: int) -> None:
    dataset = RgbdBagDataset(bags, LABELS)
    positions = shuffled(len(dataset), size)
    for batch, wanted in zip(batches(dataset, workers, positions), positions, strict=True):
        assert_same_batch(batch, [dataset[position] for position in wanted])
        batch.rgb.zero_()  # a batch may be written to


@pytest.mark.parametrize("kind", ["compressed", "transform", "spawn"])
def test_batches_of_other_kinds_too(bags: list[Path], compressed_bag: Path, kind: str) -> None:
    dataset = RgbdBagDataset(
        [compressed_bag] if kind == "compressed" else bags, transform=double if kind == "transform" else None
    )
    positions = shuffled(len(dataset), 4)
    seen = list(batches(dataset, 1, positions, "spawn" if kind == "spawn" else None))
    for batch, wanted in zip(seen, positions, strict=True):
        assert_same_batch(batch, [dataset[position] for position in wanted])


def test_batches_that_are_kept_stay_as_they_are(bags: list[Path]) -> None:
    dataset = RgbdBagDataset(bags, LABELS)
    positions = [*shuffled(len(dataset), 2), *shuffled(len(dataset), 2)]
    assert len(positions) > 2 * SLABS
    kept = list(batches(dataset, 2, positions))
    some = [(batch.rgb[0], wanted[0]) for batch, wanted in zip(kept, positions, strict=True)][::3]
    for batch, wanted in zip(kept, positions, strict=True):
        assert_same_batch(batch, [dataset[position] for position in wanted])
    del kept, batch
    gc.collect()
    for rgb, position in some:  # a piece of a batch keeps all of its memory
        np.testing.assert_array_equal(rgb.numpy(), dataset[position].rgb)


def test_memory_is_used_again_once_a_batch_is_gone(bags: list[Path]) -> None:
    dataset = RgbdBagDataset(bags)
    addresses = Counter(batch.rgb.data_ptr() for batch in batches(dataset, 1, shuffled(len(dataset), 2)))
    assert addresses.total() == len(dataset) / 2
    assert len(addresses) <= SLABS


def test_raw_images_are_read_right_into_the_batch(bags: list[Path]) -> None:
    dataset = RgbdBagDataset([bags[0]])
    batch = next(batches(dataset, 1, [[1, 2, 3, 4]]))
    pixels = HEIGHT * WIDTH * 3
    assert batch.rgb.stride()[0] > pixels  # what surrounds the pixels in their messages lies between them
    assert batch.labels.stride() == (0, WIDTH, 1)  # none is labelled: they all share one


@pytest.mark.parametrize("order", [[1, 2, 5], [5, 1, 2], [1, 5, 2], [0, 5, 10]])
def test_labelled_and_unlabelled_frames_may_share_a_batch(bags: list[Path], order: list[int]) -> None:
    dataset = RgbdBagDataset([bags[0]], LABELS)
    batch = next(batches(dataset, 1, [order]))
    assert_same_batch(batch, [dataset[position] for position in order])
    batch.labels.zero_()


def test_one_collate_may_serve_two_loaders_at_once(bags: list[Path]) -> None:
    dataset = RgbdBagDataset(bags)
    collate = SharedCollate(dataset, 2, 1)
    positions = shuffled(len(dataset), 2)
    loaders = [
        iter(DataLoader(dataset, batch_sampler=positions, num_workers=1, collate_fn=collate))
        for _ in range(2)
    ]
    for wanted in positions:
        for loader in loaders:
            assert_same_batch(next(loader), [dataset[position] for position in wanted])


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_that_differ_are_named(bags: list[Path], tmp_path: Path, workers: int) -> None:
    dataset = RgbdBagDataset([bags[0], write_bag(tmp_path / "tall", height=14, labels=False)])
    with pytest.raises(
        CollateError, match=r"samples differ in rgb: uint8 \(12, 16, 3\) and uint8 \(14, 16, 3\)"
    ):
        list(batches(dataset, workers, [[0, FRAMES]]))


def test_pytorch_s_own_collate_takes_samples_too(bags: list[Path]) -> None:
    dataset = RgbdBagDataset(bags, LABELS)
    batch = next(iter(DataLoader(dataset, 3)))
    assert isinstance(batch, Sample)
    assert_same_batch(batch, [dataset[position] for position in range(3)])


def test_a_damaged_frame_is_named_by_its_worker(bags: list[Path], tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "hurt")
    dataset = RgbdBagDataset([bag])
    storage = bag / "hurt.mcap"
    content = bytearray(storage.read_bytes())
    at = content.index(rgb_image(13).tobytes())
    content[at] ^= 1
    storage.write_bytes(content)
    with pytest.raises(BagError, match=rf"^{storage}: damaged at byte \d+, .*fails its checksum"):
        list(batches(dataset, 1, [[12, 13]]))


def collate_after_errors(dataset: RgbdBagDataset, collate: SharedCollate, kinds: Any) -> None:
    """In a process of its own: batches that fail, more of them than there are slabs, and then one that does not."""
    sample = dataset[0]
    for _ in range(2 * SLABS):
        with pytest.raises(CollateError):
            collate([sample, sample._replace(rgb=sample.rgb[:-1])])
    kinds.put(type(collate([sample, sample])).__name__)


def test_a_batch_that_fails_gives_its_memory_back(bags: list[Path]) -> None:
    dataset = RgbdBagDataset(bags)
    context = multiprocessing.get_context("fork")
    kinds = context.Queue()
    process = context.Process(
        target=collate_after_errors, args=(dataset, SharedCollate(dataset, 2, 1), kinds)
    )
    process.start()
    assert kinds.get(timeout=60) == "_SharedBatch"
    process.join()


def test_lazy_samples_are_a_sequence(bags: list[Path]) -> None:
    dataset = RgbdBagDataset(bags)
    samples = dataset.__getitems__([3, 1])
    assert isinstance(samples, LazySamples)
    assert [sample.stamp_ns for sample in samples] == [dataset[3].stamp_ns, dataset[1].stamp_ns]
    assert [sample.stamp_ns for sample in samples.stream(new_memory)] == [
        samples[0].stamp_ns,
        samples[1].stamp_ns,
    ]
