# SPDX-License-Identifier: Apache-2.0
"""Every form of rosbag2 gives the same frames; a recording that was cut off gives those before the cut."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pytest
from bag_variants import (
    FRAME_ID,
    PERIOD,
    RAW_TOPICS,
    SECOND,
    VARIANTS,
    StoredMessage,
    compressed_cdr,
    depth_header,
    image_cdr,
    recording,
    topics_of,
    write_bag,
)

from m3l_model import index_cache
from m3l_model.bag_files import open_storage
from m3l_model.bag_frames import BagFrame, BagFrames
from m3l_model.bag_storage import BagError, zstd
from m3l_model.bag_topics import Topics
from m3l_model.bags import BagReader, open_index, read_frames
from m3l_model.cdr import COMPRESSED_IMAGE, IMAGE, parse_image
from m3l_model.errors import M3LError
from m3l_model.images import ImageFormatError, to_depth, to_rgb

WARNINGS = "m3l_model.index_cache"


def raw(bag: Path, topics: Iterable[str] | None = None) -> list[StoredMessage]:
    with BagReader(bag) as reader:
        return [
            StoredMessage(message.topic, message.msgtype, message.log_ns, bytes(message.data))
            for message in reader.raw_messages(topics)
        ]


def assert_same(frames: Iterable[BagFrame], others: Iterable[BagFrame]) -> None:
    for frame, other in zip(frames, others, strict=True):
        assert (frame.stamp_ns, frame.reason, frame.frame_id) == (
            other.stamp_ns,
            other.reason,
            other.frame_id,
        )
        for role in ("rgb", "depth", "labels"):
            np.testing.assert_equal(getattr(frame, role), getattr(other, role))


# Forms


@pytest.mark.parametrize("metadata", [True, False])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_form_gives_the_same_frames(name: str, metadata: bool, tmp_path: Path) -> None:
    variant = VARIANTS[name]._replace(metadata=metadata)
    messages = recording(variant.compressed, variant.size)
    bag = write_bag(tmp_path / "bag", variant)

    with closing(BagFrames.open(bag)) as frames:
        read = list(frames)
        again = [frames[position] for position in reversed(range(len(frames)))]

    assert raw(bag) == sorted(messages, key=lambda message: message.log_ns)
    topics = topics_of(variant.compressed)
    stored = {
        (message.topic, image.header.stamp_ns): image
        for message in messages
        if message.topic in (topics.rgb, topics.depth, topics.label)
        for image in [cast("Any", parse_image(message.msgtype, message.data))]
    }
    assert [frame.stamp_ns for frame in read] == [SECOND + index * PERIOD for index in range(8)]
    assert [frame.depth is None for frame in read] == [index in (4, 5) for index in range(8)]
    assert [frame.labels is not None for frame in read] == [index % 3 == 0 for index in range(8)]
    for frame in read:
        np.testing.assert_array_equal(frame.rgb, to_rgb(stored[topics.rgb, frame.stamp_ns]))
        if frame.depth is not None:
            np.testing.assert_array_equal(frame.depth, to_depth(stored[topics.depth or "", frame.stamp_ns]))
        assert frame.frame_id == FRAME_ID
    assert_same(again[::-1], read)


def test_a_bag_compressed_as_a_whole_is_refused_with_the_way_out(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", VARIANTS["mcap"])
    storage = bag / "bag_0.mcap"
    compressed = storage.with_name("bag_0.mcap.zstd")
    compressed.write_bytes(zstd.compress(storage.read_bytes()))
    storage.unlink()
    metadata = (bag / "metadata.yaml").read_text()

    for text in (metadata.replace("bag_0.mcap", "bag_0.mcap.zstd"), metadata, None):
        (bag / "metadata.yaml").unlink(missing_ok=True)
        if text is not None:
            (bag / "metadata.yaml").write_text(text)
        for path in (bag, compressed):
            with pytest.raises(
                BagError, match=f"{compressed}: compressed as a whole.*`zstd -d --rm {compressed}`"
            ):
                open_index(path)

    compressed.rename(compressed.with_name("compressed.mcap.zst"))
    (bag / "bag_0.mcap").write_bytes(b"")
    with pytest.raises(BagError, match=r"bag_0\.mcap: the file is empty"):
        open_index(bag)


# Encodings

COLORS = {
    "rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1, "yuv422": 2, "yuv422_yuy2": 2, "uyvy": 2, "yuyv": 2,
    "bayer_rggb8": 1, "bayer_bggr8": 1, "bayer_gbrg8": 1, "bayer_grbg8": 1,
}  # fmt: skip
DEPTHS = {"16UC1": np.uint16, "mono16": np.uint16, "32FC1": np.float32}
HEIGHT, WIDTH = 6, 8


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("padding", [0, 5])
def test_every_encoding_is_read_from_a_bag(order: str, padding: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    messages, expected = [], {}
    for encoding, size in {
        **COLORS,
        **{name: np.dtype(kind).itemsize for name, kind in DEPTHS.items()},
    }.items():
        rows = rng.integers(0, 128, (HEIGHT, WIDTH * size), np.uint8)
        padded = np.hstack([rows, np.full((HEIGHT, padding), 0xA5, np.uint8)])
        big_endian = encoding in DEPTHS and order == ">"
        data = image_cdr(
            SECOND, HEIGHT, WIDTH, encoding, padded.shape[1], padded.tobytes(), big_endian, order
        )
        messages.append(StoredMessage(f"/{encoding}", IMAGE, SECOND, data))
        if encoding in DEPTHS:
            expected[encoding] = rows.view(
                np.dtype(DEPTHS[encoding]).newbyteorder(">" if order == ">" else "<")
            )
        else:
            packed = image_cdr(SECOND, HEIGHT, WIDTH, encoding, rows.shape[1], rows.tobytes())
            expected[encoding] = to_rgb(cast("Any", parse_image(IMAGE, packed)))
    # Depth first: a colour image waits for depth only once there has been any.
    bag = write_bag(tmp_path / "bag", VARIANTS["mcap"], messages[::-1])

    for encoding in COLORS:
        (frame,) = read_frames(bag, Topics(rgb=f"/{encoding}"))
        assert frame.rgb.shape == (HEIGHT, WIDTH, 3)
        np.testing.assert_array_equal(frame.rgb, expected[encoding])
    for encoding, kind in DEPTHS.items():
        (frame,) = read_frames(bag, Topics(rgb="/rgb8", depth=f"/{encoding}"))
        assert frame.depth is not None
        assert frame.depth.dtype == kind
        np.testing.assert_array_equal(frame.depth, expected[encoding])


def test_compressed_images_and_depth_are_read_from_a_bag(tmp_path: Path) -> None:
    rgb = np.tile(np.array([200, 100, 50], np.uint8), (HEIGHT, WIDTH, 1))
    levels = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 1000
    png = cv2.imencode(".png", levels)[1].tobytes()
    coded = {
        "/jpeg": ("rgb8; jpeg compressed bgr8", cv2.imencode(".jpg", rgb[..., ::-1])[1].tobytes()),
        "/png": ("png", cv2.imencode(".png", rgb[..., ::-1])[1].tobytes()),
        "/mm": ("16UC1; compressedDepth png", depth_header() + png),
        "/m": ("32FC1; compressedDepth png", depth_header(1000.0, -1.0) + png),
        "/rvl": ("16UC1; compressedDepth rvl", depth_header() + bytes(50)),
    }
    bag = write_bag(
        tmp_path / "bag",
        VARIANTS["mcap"],
        [
            StoredMessage(topic, COMPRESSED_IMAGE, SECOND, compressed_cdr(SECOND, form, data))
            for topic, (form, data) in reversed(coded.items())
        ],
    )

    for topic in ("/jpeg", "/png"):
        (frame,) = read_frames(bag, Topics(rgb=topic))
        assert np.abs(frame.rgb.astype(int) - rgb).max() <= (3 if topic == "/jpeg" else 0)
    (frame,) = read_frames(bag, Topics(rgb="/png", depth="/mm"))
    np.testing.assert_array_equal(frame.depth, levels)
    (frame,) = read_frames(bag, Topics(rgb="/png", depth="/m"))
    assert frame.depth is not None
    np.testing.assert_allclose(frame.depth[0, 1:], 1000.0 / (levels[0, 1:] + 1.0), rtol=1e-6)
    assert np.isnan(frame.depth[0, 0])
    with pytest.raises(
        ImageFormatError, match=f"{bag}: /rvl at {SECOND}.*RVL is not supported, record it as png"
    ):
        list(read_frames(bag, Topics(rgb="/png", depth="/rvl")))


@pytest.mark.parametrize("size", [12, 15, 40])
def test_a_message_that_ends_early_is_named(size: int, tmp_path: Path) -> None:
    whole, early = [message for message in recording(frames=2) if message.topic == RAW_TOPICS.rgb]
    bag = write_bag(tmp_path / "bag", VARIANTS["mcap"], [whole, early._replace(data=early.data[:size])])
    frames = BagFrames.open(bag)

    assert frames[0].stamp_ns == SECOND
    with pytest.raises(
        BagError, match=f"{bag}: {RAW_TOPICS.rgb} at {SECOND + PERIOD}: .*(end within|are left)"
    ):
        frames[1]
    with (
        pytest.raises(
            BagError, match=f"{bag}: a message of {RAW_TOPICS.rgb} at log time .* cannot be decoded"
        ),
        BagReader(bag) as reader,
    ):
        list(reader.messages())


def test_a_topic_of_which_nothing_can_be_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    messages = [
        message._replace(data=message.data[:40]) if message.topic == RAW_TOPICS.depth else message
        for message in recording()
    ]
    bag = write_bag(tmp_path / "bag", VARIANTS["mcap"], messages)

    assert [frame.depth for frame in read_frames(bag)] == [None] * 8
    assert (
        f"no message of {RAW_TOPICS.depth} can be read: {bag}: {RAW_TOPICS.depth} at"
        in warnings_of(caplog)[0]
    )


# Cut off


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    caplog.clear()
    return lines


@pytest.mark.parametrize(
    "name", ["mcap", "mcap_one_chunk", "mcap_big", "mcap_zstd", "mcap_lz4", "mcap_not_chunked", "mcap_no_crc"]
)
@pytest.mark.parametrize("zeros", [0, 5000])
def test_mcap_is_read_up_to_the_cut(
    name: str, zeros: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    variant = VARIANTS[name]
    stored = recording(variant.compressed, variant.size)
    bag = write_bag(tmp_path / "bag", variant)
    path = bag / "bag_0.mcap"
    content = path.read_bytes()
    data_end = content.rindex(b"\x0f\x04\0\0\0\0\0\0\0")
    counts = []
    for kept in [*np.linspace(200, data_end - 1, 20).astype(int), data_end]:
        path.write_bytes(content[:kept] + bytes(zeros))

        messages = raw(bag)

        assert messages == sorted(stored[: len(messages)], key=lambda message: message.log_ns)
        (line,) = warnings_of(caplog)
        assert f"{path} was cut off" in line
        counts.append(len(messages))
    assert counts == sorted(counts)
    assert counts[-1] >= len(stored) - (zeros > 0)  # whose last message ends in zeros
    assert len(set(counts)) > (2 if name in ("mcap_zstd", "mcap_lz4") else 4)


@pytest.mark.parametrize("name", ["sqlite_1", "sqlite_3", "sqlite_message_zstd", "sqlite_compressed"])
def test_sqlite_is_read_up_to_the_cut(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    variant = VARIANTS[name]
    stored = recording(variant.compressed, variant.size)
    bag = write_bag(tmp_path / "bag", variant)
    path = bag / "bag_0.db3"
    content = path.read_bytes()
    counts = []
    for kept in np.linspace(len(content) // 2, len(content) - 1, 20).astype(int):
        path.write_bytes(content[:kept])

        messages = raw(bag)

        assert messages == sorted(stored[: len(messages)], key=lambda message: message.log_ns)
        assert f"{path} was cut off" in warnings_of(caplog)[0]
        counts.append(len(messages))
    assert counts == sorted(counts)
    assert len(set(counts)) > 2


RECORDER = """
import os, sqlite3, sys
from bag_variants import SQLITE_SCHEMAS, fill_sqlite, recording

path, mode = sys.argv[1:]
database = sqlite3.connect(path)
database.executescript(f"PRAGMA journal_mode = {mode}; PRAGMA cache_size = 5; PRAGMA page_size = 1024")
database.executescript(SQLITE_SCHEMAS[4] + "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, "
    "timestamp INTEGER NOT NULL, data BLOB NOT NULL);CREATE INDEX timestamp_idx ON messages (timestamp ASC);")
messages = recording(size=(48, 64))
fill_sqlite(database, 4, messages[:20])
topics = dict(database.execute("SELECT name, id FROM topics"))
for topic, _, log_ns, data in messages[20:]:
    database.execute("INSERT INTO messages(topic_id, timestamp, data) VALUES(?, ?, ?)", (topics[topic], log_ns, data))
if mode == "WAL":
    database.commit()
os._exit(9)
"""


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_what_a_killed_recorder_left_of_sqlite_is_read(
    mode: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bag = tmp_path / "bag"
    bag.mkdir()
    path = bag / "bag_0.db3"
    folder = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, str(Path(folder).parents[1])])}
    assert subprocess.run([sys.executable, "-c", RECORDER, path, mode], env=environment).returncode == 9
    journal = path.with_name(path.name + ("-wal" if mode == "WAL" else "-journal"))
    assert journal.stat().st_size > 0
    before = {file.name: file.read_bytes() for file in (path, journal)}
    stored = recording(size=(48, 64))

    messages = raw(bag)

    assert messages == sorted(stored[: len(messages)], key=lambda message: message.log_ns)
    assert len(messages) == len(stored) if mode == "WAL" else 15 < len(messages) < len(stored)
    assert f"{path}: its recorder" in warnings_of(caplog)[0]
    assert {file.name: file.read_bytes() for file in (path, journal)} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_write_ahead_log_in_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", VARIANTS["sqlite_4"])
    path = bag / "bag_0.db3"
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
    path.with_name(path.name + "-wal").write_bytes(bytes(range(100)))
    bag.chmod(0o555)
    try:
        with pytest.raises(BagError, match=f"{path}: cannot open its -wal file.*copy the bag"):
            open_index(bag)
    finally:
        bag.chmod(0o755)


def test_records_that_are_passed_over_are_no_chunks_in_disguise(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", VARIANTS["mcap_no_summary"])
    path = bag / "bag_0.mcap"
    expected = raw(bag)
    content = path.read_bytes()
    data_end = content.rindex(b"\x0f\x04\0\0\0\0\0\0\0")
    name = struct.pack("<I", 4) + b"name"
    aside = [
        (0x09, bytes(16) + name + name + struct.pack("<Q", 100_000) + bytes(100_000) + bytes(4)),
        (0x0C, name + struct.pack("<I", 16) + name + name),
    ]
    for opcode, body in aside:
        record = struct.pack("<BQ", opcode, len(body)) + body
        path.write_bytes(content[:data_end] + record + content[data_end:])
        assert raw(bag) == expected

    damaged = [
        content[:data_end] + struct.pack("<BQ", opcode, len(body) + 1) + body + b"\0" + content[data_end:]
        for opcode, body in aside
    ]
    at, chunks = 8, 0
    while at < data_end:
        if content[at] == 0x06:
            chunks += 1
            damaged += [content[:at] + bytes([opcode]) + content[at + 1 :] for opcode, _ in aside]
        at += 9 + struct.unpack_from("<Q", content, at + 1)[0]
    assert chunks > 2
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(BagError, match=f"{path}: damaged"):
            raw(bag)


# Checksums


def test_a_damaged_stamp_loses_no_pair_in_silence(tmp_path: Path) -> None:
    """The index is built without reading the long chunks of this bag, whose checksums cover the stamps."""
    variant = VARIANTS["mcap_big"]
    bag = write_bag(tmp_path / "bag", variant)
    path = bag / "bag_0.mcap"
    content = path.read_bytes()
    images = [message for message in recording(size=variant.size) if message.msgtype == IMAGE]
    for message in images:
        at = content.index(message.data) + 4
        for byte in (0, 5, 7):
            damaged = bytearray(content)
            damaged[at + byte] ^= 0x10
            path.write_bytes(damaged)
            with pytest.raises(BagError, match=f"{path}: damaged.*fails its checksum"):
                list(read_frames(bag))


def test_an_index_is_built_of_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bag = write_bag(tmp_path / "bag", VARIANTS["mcap_big"])
    passed = []
    pread = os.pread

    def count(fd: int, size: int, at: int) -> bytes:
        passed.append(size)
        return pread(fd, size, at)

    monkeypatch.setattr(os, "pread", count)
    monkeypatch.setattr(os, "preadv", lambda *arguments: pytest.fail("a message or chunk was read whole"))
    path = bag / "bag_0.mcap"

    with closing(open_storage(path)) as storage:
        assert len(list(storage.scan([IMAGE]))) == 8 + 6 + 3

    assert sum(passed) < 10_000 < path.stat().st_size / 50


def test_rows_that_sqlite_has_lost_are_missed(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", VARIANTS["sqlite_4"])
    path = bag / "bag_0.db3"
    content = bytearray(path.read_bytes())
    pages = [at for at in range(1024, len(content), 1024) if content[at] == 13 and content[at + 4] > 1]
    content[pages[-1] + 4] -= 1  # the number of rows on the page
    path.write_bytes(content)

    with pytest.raises(
        BagError, match=f"{path}: damaged: .* messages are there, but its index of log times|malformed"
    ):
        open_index(bag)


# The index


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    return write_bag(tmp_path / "bag", VARIANTS["mcap"])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The bags whose index was built."""
    built: list[Path] = []

    def build(path: Path, *arguments: object) -> object:
        built.append(path)
        return original(path, *arguments)  # type: ignore[arg-type]

    original = index_cache.build_index
    monkeypatch.setattr(index_cache, "build_index", build)
    return built


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


def test_an_index_is_built_once(bag: Path, cache: Path, builds: list[Path]) -> None:
    first = list(read_frames(bag))
    kept = {path: path.stat().st_mtime_ns for path in entries(cache)}
    assert_same(read_frames(bag), first)

    assert builds == [bag]
    assert len(kept) == 2
    assert {path: path.stat().st_mtime_ns for path in entries(cache)} == kept


def test_without_cache_no_file_is_left(bag: Path, cache: Path, builds: list[Path]) -> None:
    for _ in range(2):
        assert len(list(read_frames(bag, cache=False))) == 8

    assert len(builds) == 2
    assert not cache.exists()


def test_an_index_is_built_anew_when_the_bag_has_changed(bag: Path, builds: list[Path]) -> None:
    path = bag / "bag_0.mcap"
    content = path.read_bytes()
    open_index(bag)
    facts = path.stat()

    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))  # touched, of the same size
    open_index(bag)
    write_bag(bag.with_name("other"), VARIANTS["mcap"], recording(frames=3))
    path.write_bytes((bag.with_name("other") / "other_0.mcap").read_bytes())
    assert len(list(read_frames(bag))) == 3
    changed = bytearray(content)
    changed[content.index(FRAME_ID.encode())] ^= 1
    path.write_bytes(changed)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # of the same size and time
    with pytest.raises(BagError, match="checksum"):
        open_index(bag)

    assert len(builds) == 4


def test_an_index_grows_with_the_write_ahead_log(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "recorded", VARIANTS["sqlite_4"], recording(frames=3))
    assert len(list(read_frames(bag))) == 3
    code = (
        "import os, sqlite3, sys; database = sqlite3.connect(sys.argv[1]);"
        "database.execute('PRAGMA journal_mode = WAL');"
        "database.execute('DELETE FROM messages WHERE topic_id != "
        '(SELECT id FROM topics WHERE name LIKE "%color%")\');'
        "database.commit(); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, bag / "recorded_0.db3"], check=True)

    frames = list(read_frames(bag))

    assert [frame.depth for frame in frames] == [None] * 3


@pytest.mark.parametrize("damage", ["cut", "junk", "flip", "empty", "folder"])
def test_a_damaged_entry_is_made_anew(damage: str, bag: Path, cache: Path, builds: list[Path]) -> None:
    whole = list(read_frames(bag))
    for path in entries(cache):
        content = path.read_bytes()
        if damage == "folder":
            path.unlink()
            path.mkdir()
            continue
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 4
        path.write_bytes(
            {"cut": content[:-30], "junk": os.urandom(300), "flip": bytes(flipped), "empty": b""}[damage]
        )

    assert_same(read_frames(bag), whole)
    assert len(builds) == 2


def test_a_cache_that_cannot_be_written_costs_time_only(
    bag: Path, cache: Path, builds: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_text("a file where the folder should be")

    for _ in range(2):
        assert len(list(read_frames(bag))) == 8

    assert len(builds) == 2
    assert all("cannot keep" in line and str(cache) in line for line in warnings_of(caplog))


def test_a_user_without_home_has_no_cache(bag: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)

    assert len(list(read_frames(bag))) == 8


def test_a_bag_that_grows_while_it_is_indexed_is_not_kept(
    bag: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bag / "bag_0.mcap"
    original = index_cache.build_index

    def build(*arguments: object) -> object:
        index = original(*arguments)  # type: ignore[arg-type]
        with path.open("ab") as file:
            file.write(b"more")
        return index

    monkeypatch.setattr(index_cache, "build_index", build)
    assert len(BagFrames.open(bag)) == 8

    assert entries(cache) == []


def test_warnings_name_the_bag_where_it_is_now(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "one").mkdir()
    bag = write_bag(tmp_path / "one" / "bag", VARIANTS["mcap"])
    path = bag / "bag_0.mcap"
    path.write_bytes(path.read_bytes()[:5000])
    open_index(bag)
    assert str(path) in warnings_of(caplog)[0]

    (tmp_path / "one").rename(tmp_path / "two")
    open_index(tmp_path / "two" / "bag")

    (line,) = warnings_of(caplog)
    assert str(tmp_path / "two" / "bag" / "bag_0.mcap") in line
    assert "one" not in line.split("bag_0")[0]


BUILDER = """
import sys
from m3l_model.bags import read_frames
sys.stdin.readline()
print(sum(int(frame.rgb.sum()) for frame in read_frames(sys.argv[1])))
"""


def test_two_processes_build_an_index_at_once(bag: Path, cache: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BUILDER, bag], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    answers = [process.communicate("go\n", timeout=60)[0] for process in processes]

    assert {process.returncode for process in processes} == {0}
    assert set(answers) == {f"{sum(int(frame.rgb.sum()) for frame in read_frames(bag, cache=False))}\n"}
    assert len(entries(cache)) == 2


# Files and processes


def open_files() -> set[str]:
    return {
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    }


@pytest.mark.parametrize("name", ["mcap_split", "sqlite_split"])
def test_no_file_stays_open(name: str, tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", VARIANTS[name])
    frames = BagFrames.open(bag)
    list(frames)
    assert any(str(bag) in path for path in open_files())

    frames.close()
    assert not any(str(bag) in path for path in open_files())
    assert frames[0].stamp_ns == SECOND
    del frames
    raw(bag)
    (bag / "metadata.yaml").unlink()
    os.truncate(next(iter(bag.iterdir())), 20)
    with pytest.raises(M3LError):
        list(BagFrames.open(bag))

    assert not any(str(bag) in path for path in open_files())


@pytest.mark.parametrize("name", ["mcap_split", "sqlite_split"])
def test_a_forked_process_reads_by_files_of_its_own(name: str, tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", VARIANTS[name])
    frames = BagFrames.open(bag)
    whole = list(frames)
    context = multiprocessing.get_context("fork")

    def read(queue: multiprocessing.Queue[int]) -> None:
        queue.put(sum(int(frame.rgb.sum()) for frame in frames))

    queue = context.Queue()
    children = [context.Process(target=read, args=(queue,)) for _ in range(2)]
    for child in children:
        child.start()
    assert_same(frames, whole)
    sums = [queue.get(timeout=60) for _ in children]
    for child in children:
        child.join(60)

    assert set(sums) == {sum(int(frame.rgb.sum()) for frame in whole)}
