# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import cv2
import numpy as np
import pytest

from m3l_model.bag_writer import BagWriter
from m3l_model.bags import BagFrames
from m3l_model.cli import main
from m3l_model.errors import M3LError
from m3l_model.label_files import open_label_files
from m3l_model.labels import IGNORE_ID, LabelError, LabelSet
from m3l_model.preprocessing import Preprocessing
from m3l_model.run_log import read_log
from m3l_model.splits import BagSplits, Splits, TimeRange
from m3l_model.training_frames import TrainingFrames

SECOND = 1_000_000_000
START_NS = 50 * SECOND
STEP_NS = SECOND // 2
FRAMES = 12
SIZE = (40, 60)
LABELS = LabelSet.generic(3)
WHOLE = (TimeRange(0, None),)


def stamp(frame: int) -> int:
    return START_NS + frame * STEP_NS


def write_bag(
    path: Path, labelled: Collection[int] = (1, 4, 9), size: tuple[int, int] = SIZE, label: int = 1
) -> Path:
    """6 s at 2 Hz: frame i has the grey value 10 i everywhere, and labels of one class where it has any."""
    with BagWriter(path) as bag:
        for frame in range(FRAMES):
            rgb = np.full((*size, 3), 10 * frame, np.uint8)
            labels = np.full(size, label, np.uint8) if frame in labelled else None
            bag.write_frame(stamp(frame), "camera", rgb, np.full(size, 2000, np.uint16), labels, np.eye(3))
    return path


def write_png(path: Path, label: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full(SIZE, label, np.uint8))


def select(*bags: Path, labels: Path | None = None, splits: Splits | None = None) -> TrainingFrames:
    files = open_label_files(labels, LABELS) if labels else None
    return TrainingFrames.select([BagFrames.open(bag) for bag in bags], LABELS, files, splits)


def halves(path: Path, **roles: tuple[TimeRange, ...]) -> Splits:
    """The first 4 s train unless told otherwise, the rest validates."""
    ranges = roles or {"training": (TimeRange(0, 4 * SECOND),), "validation": (TimeRange(4 * SECOND, None),)}
    return Splits((BagSplits(path, **ranges),))


def test_without_splits_every_labelled_frame_is_trained_on_with_its_labels(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag")
    write_png(tmp_path / "labels" / f"{stamp(7)}.png")
    chosen = select(bag, labels=tmp_path / "labels")
    assert chosen.labelled.tolist() == [1, 4, 7, 9]
    assert sorted([*chosen.labelled, *chosen.unlabelled]) == list(range(FRAMES))


def test_splits_say_what_is_trained_on(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag")
    chosen = select(bag, splits=halves(bag))
    assert chosen.labelled.tolist() == [1, 4]
    assert chosen.unlabelled.tolist() == [0, 2, 3, 5, 6, 7]


def test_only_labelled_positions_come_with_labels(tmp_path: Path) -> None:
    good, other = write_bag(tmp_path / "good"), write_bag(tmp_path / "other", label=77)
    splits = Splits(
        (
            BagSplits(good, training=(TimeRange(0, 4 * SECOND),), validation=(TimeRange(4 * SECOND, None),)),
            BagSplits(other, unlabelled=WHOLE),
        )
    )
    chosen = select(good, other, splits=splits)
    chosen.check_labels(workers=0, allow_unlabelled_classes=True)
    frames = chosen.at_network_size(Preprocessing(32))
    with_labels = [
        position for position in range(len(frames)) if (frames[position].labels != IGNORE_ID).any()
    ]
    assert with_labels == chosen.labelled.tolist() == [1, 4]
    assert set(range(FRAMES, 2 * FRAMES)) <= set(chosen.unlabelled.tolist())


def test_what_leaves_nothing_to_train_on_or_to_validate_with_is_refused(tmp_path: Path) -> None:
    bag, bare = write_bag(tmp_path / "bag"), write_bag(tmp_path / "bare", labelled=())
    with pytest.raises(
        LabelError, match=r"bare: no frame has labels: .*--label-topic or the files with --labels"
    ):
        select(bare)
    late = {"training": (TimeRange(5 * SECOND, None),), "validation": (TimeRange(0, SECOND),)}
    with pytest.raises(M3LError, match="none of the 3 labelled frames to training"):
        select(bag, splits=halves(bag, **late))
    with pytest.raises(M3LError, match="no frame apart for validation"):
        select(bag, splits=halves(bag, training=WHOLE))
    unlabelled = write_bag(tmp_path / "early", labelled=(1, 4))
    with pytest.raises(
        M3LError, match=r"none of the 4 frames that the splits set apart for validation has labels"
    ):
        select(unlabelled, splits=halves(unlabelled))


def test_without_labels_all_frames_are_trained_on_but_those_set_apart(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", label=77)
    opened = [BagFrames.open(bag)]
    whole = TrainingFrames.without_labels(opened)
    assert whole.trained_on.tolist() == whole.unlabelled.tolist() == list(range(FRAMES))
    part = TrainingFrames.without_labels(opened, halves(bag))
    assert part.unlabelled.tolist() == list(range(8))
    roles = {
        role: (TimeRange(second * SECOND, (second + 1) * SECOND),)
        for second, role in enumerate(("training", "labelled", "unlabelled", "validation"))
    }
    assert TrainingFrames.without_labels(opened, halves(bag, **roles)).unlabelled.tolist() == list(range(6))
    with pytest.raises(M3LError, match="the 0 labelled frames show no class"):
        part.check_labels(workers=0)
    assert (part.at_network_size(Preprocessing(32)).read(1).labels == IGNORE_ID).all()
    apart = Splits((BagSplits(bag, validation=WHOLE),))
    with pytest.raises(M3LError, match=r"bag: no frame of those that the splits leave to training has depth"):
        TrainingFrames.without_labels(opened, apart)


def test_frames_without_depth_teach_nothing_without_labels(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as bag:
        for frame in range(4):
            depth = np.full(SIZE, 2000, np.uint16) if frame % 2 else None
            bag.write_frame(stamp(frame), "camera", np.zeros((*SIZE, 3), np.uint8), depth, None, np.eye(3))
    with BagWriter(tmp_path / "colour") as bag:
        bag.write_frame(stamp(0), "camera", np.zeros((*SIZE, 3), np.uint8), None, None, np.eye(3))
    opened = [BagFrames.open(tmp_path / name) for name in ("bag", "colour")]
    assert TrainingFrames.without_labels(opened).unlabelled.tolist() == [1, 3]
    with pytest.raises(M3LError, match=r"colour: no frame of the bags has depth"):
        TrainingFrames.without_labels(opened[1:])


def test_frames_without_any_depth_are_refused(tmp_path: Path) -> None:
    shapes = {"none": None, "holes": np.zeros(SIZE, np.uint16)}
    for name, depth in shapes.items():
        with BagWriter(tmp_path / name) as bag:
            for frame in range(3):
                rgb, labels = np.full((*SIZE, 3), 50, np.uint8), np.ones(SIZE, np.uint8)
                bag.write_frame(stamp(frame), "camera", rgb, depth, labels, np.eye(3))
    with pytest.raises(M3LError, match="none: none of the 3 frames that are trained on is paired with depth"):
        select(tmp_path / "none").check_depth()
    with pytest.raises(M3LError, match="holes: none of the 3 depth images has a valid reading"):
        select(tmp_path / "holes").check_depth()
    with BagWriter(tmp_path / "once") as bag:
        for frame in range(60):
            depth = np.full(SIZE, 2000 * (frame == 41), np.uint16)
            bag.write_frame(stamp(frame), "camera", rgb, depth, labels, np.eye(3))
    select(tmp_path / "holes", tmp_path / "once").check_depth()


def test_a_label_set_of_one_class_is_refused(tmp_path: Path) -> None:
    bag = BagFrames.open(write_bag(tmp_path / "bag", label=0))
    with pytest.raises(M3LError, match="'generic' has one class alone"):
        TrainingFrames.select([bag], LabelSet.generic(1))


def test_label_images_that_fit_no_image_hinder_nothing_that_reads_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, image = tmp_path / "bag", np.zeros((*SIZE, 3), np.uint8)
    with BagWriter(path) as bag:
        for frame in range(FRAMES):
            bag.write_frame(
                stamp(frame), "camera", image + 9 * frame, np.full(SIZE, 2000, np.uint16), None, np.eye(3)
            )
        for frame in (1, 2):
            bag.write_labels("/camera/labels", stamp(frame) + 7, "camera", np.ones(SIZE, np.uint8))
    with pytest.raises(M3LError, match="none of the 2 images"):
        BagFrames.open(path)
    assert (
        main(["split", str(path), "--out", str(tmp_path / "splits.yaml"), "--block", "1", "--gap", "0.5"])
        == 0
    )
    pretrain = tmp_path / "pretrain.yaml"
    pretrain.write_text("{task: reconstruct, mean_teacher: false, short_side: 32, crop: 1.0, steps: 1}")
    out = ["--out", str(tmp_path / "run"), "--workers", "0", "--device", "cpu"]
    assert main(["train", "--bag", str(path), "--config", str(pretrain), *out]) == 0
    assert main(["train", "--bag", str(path), str(path), "--config", str(pretrain), *out, "--resume"]) == 2
    assert "bag: named twice" in capsys.readouterr().err


def test_label_files_of_other_bags_are_refused(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag")
    write_png(tmp_path / "kitchen" / "hall" / f"{stamp(2)}.png")
    with pytest.raises(LabelError, match="kitchen: labels of hall, but the bags are bag"):
        select(bag, labels=tmp_path / "kitchen")
    write_png(tmp_path / "late" / f"{stamp(2) + 1}.png")
    with pytest.raises(LabelError, match="late: no label has the stamp of a colour image of bag"):
        select(bag, labels=tmp_path / "late")


@pytest.mark.parametrize("workers", [0, 2])
def test_ids_outside_the_label_set_are_listed_with_counts_topics_and_stamps(
    tmp_path: Path, workers: int
) -> None:
    many, one = write_bag(tmp_path / "many", range(6), label=7), write_bag(tmp_path / "one", [3], label=9)
    with pytest.raises(LabelError) as caught:
        select(many, one).check_labels(workers)
    pixels = SIZE[0] * SIZE[1]
    assert str(caught.value).startswith(
        f"ids outside label set 'generic': 7 ({6 * pixels} pixels in {many} /camera/labels at {stamp(0)}, "
        f"{stamp(1)}, {stamp(2)} and 3 more), 9 ({pixels} pixels in {one} /camera/labels at {stamp(3)}); "
    )


def test_labels_of_validation_are_checked_too_and_count_for_no_class_that_is_trained(tmp_path: Path) -> None:
    first, other = write_bag(tmp_path / "first"), write_bag(tmp_path / "other", range(6), label=0)
    splits = Splits(
        (BagSplits(first, training=(TimeRange(0, None),)), BagSplits(other, validation=(TimeRange(0, None),)))
    )
    with pytest.raises(M3LError, match="never show class_0, class_2"):
        select(first, other, splits=splits).check_labels(workers=0)
    wrong = write_bag(tmp_path / "wrong", range(6), label=9)
    splits = Splits(
        (BagSplits(first, training=(TimeRange(0, None),)), BagSplits(wrong, validation=(TimeRange(0, None),)))
    )
    with pytest.raises(LabelError, match="ids outside label set 'generic': 9 "):
        select(first, wrong, splits=splits).check_labels(workers=0, allow_unlabelled_classes=True)


def test_label_files_are_checked_before_training(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag")
    write_png(tmp_path / "labels" / f"{stamp(2)}.png", label=8)
    with pytest.raises(LabelError, match=rf"8 .*{stamp(2)}\.png"):
        select(bag, labels=tmp_path / "labels").check_labels(workers=0)


def test_classes_that_are_never_labelled_are_an_error_unless_allowed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bag = write_bag(tmp_path / "bag")
    with pytest.raises(M3LError, match=r"never show class_0, class_2 of label set 'generic'.*--allow-unlab"):
        select(bag).check_labels(workers=0)
    select(bag).check_labels(workers=0, allow_unlabelled_classes=True)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.endswith("labelled frames never show class_0, class_2; that will not be learnt")
    caplog.clear()
    for frame, label in ((0, 0), (2, 2)):
        write_png(tmp_path / "labels" / f"{stamp(frame)}.png", label)
    select(bag, labels=tmp_path / "labels").check_labels(workers=0)
    assert not caplog.records


def test_bags_that_come_out_at_different_sizes_are_named_before_training(tmp_path: Path) -> None:
    bag, wide = write_bag(tmp_path / "bag"), write_bag(tmp_path / "wide", size=(32, 64))
    with pytest.raises(M3LError) as caught:
        select(bag, wide).at_network_size(Preprocessing(32))
    assert f"{wide} at {stamp(0)}, 64x32, comes out at 64x32" in str(caught.value)
    assert f"{bag} at {stamp(1)}, 60x40, at 48x32" in str(caught.value)
    larger = write_bag(tmp_path / "larger", size=(80, 120))
    assert select(bag, larger).at_network_size(Preprocessing(32))[FRAMES].rgb.shape == (32, 48, 3)
    splits = Splits((BagSplits(wide, validation=WHOLE), BagSplits(bag, training=WHOLE)))
    frames = select(wide, bag, splits=splits).at_network_size(Preprocessing(32))
    assert frames[FRAMES].rgb.shape == (32, 48, 3)


@pytest.mark.parametrize("copy", [1, 2, 3])
def test_a_copy_of_a_training_bag_is_found_among_bags_of_the_same_stamps(tmp_path: Path, copy: int) -> None:
    depth, labels = np.full(SIZE, 2000, np.uint16), np.ones(SIZE, np.uint8)
    for number in range(4):
        with BagWriter(tmp_path / f"bag_{number}") as bag:
            for frame in range(60):
                grey = np.full((*SIZE, 3), frame + 60 * (0 if number == copy else number), np.uint8)
                bag.write_frame(stamp(frame), "camera", grey, depth, labels, np.eye(3))
    training, *validating = (tmp_path / f"bag_{number}" for number in range(4))
    splits = Splits((BagSplits(training, WHOLE), *(BagSplits(bag, validation=WHOLE) for bag in validating)))
    chosen = select(training, *validating, splits=splits)
    with pytest.raises(M3LError, match=rf"overlap: .*bag_0 and .*bag_{copy} hold the same image"):
        chosen.check_overlap()


@pytest.mark.parametrize(("copied", "found"), [("labelled", True), ("unlabelled", False), ("blank", False)])
def test_a_labelled_image_that_also_validates_is_found_whatever_its_stamp(
    tmp_path: Path, copied: str, found: bool
) -> None:
    """As in two imports of lists that overlap; an image of one colour is like others of it."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*SIZE, 3), np.uint8) for _ in range(4)]
    blank = np.zeros((*SIZE, 3), np.uint8)
    shown = {"labelled": images[0], "unlabelled": images[1], "blank": blank}[copied]
    depth, labels = np.full(SIZE, 2000, np.uint16), np.ones(SIZE, np.uint8)
    for name, offset, contents in (
        ("train", 0, [(images[0], labels), (images[1], None), (blank, labels)]),
        ("held", 7, [(images[2], labels), (images[3], labels), (shown, labels)]),
    ):
        with BagWriter(tmp_path / name) as bag:
            for frame, (rgb, of_frame) in enumerate(contents):
                bag.write_frame(stamp(frame) + offset, "camera", rgb, depth, of_frame, np.eye(3))
    training, held = tmp_path / "train", tmp_path / "held"
    splits = Splits((BagSplits(training, WHOLE), BagSplits(held, validation=WHOLE)))
    chosen = select(training, held, splits=splits)
    if not found:
        chosen.check_overlap()
        return
    with pytest.raises(
        M3LError, match=rf"train and .*held hold the same image, at {stamp(0)} and {stamp(2) + 7}"
    ):
        chosen.check_overlap()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "{mean_teacher: true, masking: student, short_side: 32, crop: 1.0, steps: 2, labelled_batch: 2, "
        "unlabelled_batch: 2}"
    )
    return path


def test_commands_train_on_splits_and_score_their_validation_part(
    tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bag = write_bag(tmp_path / "bag")
    label_set = tmp_path / "three.yaml"
    label_set.write_text(
        "name: three\nclasses: [{name: a, color: [1, 2, 3]}, {name: b, color: [4, 5, 6]}, {name: c, color: [7, 8, 9]}]"
    )
    for frame in (6, 10, 11):
        write_png(tmp_path / "labels" / "bag" / f"{stamp(frame)}.png")
    halves(bag).save(tmp_path / "splits.yaml")
    common = ["--splits", "splits.yaml", "--labels", "labels", "--device", "cpu"]
    train = ["train", *common, "--label-set", "three.yaml", "--config", str(recipe), "--slop", "0.01"]
    train.append("--allow-unlabelled-classes")
    assert main([*train, "--out", "run", "--workers", "1"]) == 0
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (facts["labelled_frames"], facts["unlabelled_frames"], facts["workers"]) == (3, 5, 1)
    assert (facts["splits"], facts["label_files"]) == ("splits.yaml", "labels")
    assert (facts["label_set"], facts["pairing"]["slop"], len(facts["bags"])) == ("three", 0.01, 1)

    evaluation = [
        "eval",
        "--checkpoint",
        "run/checkpoint.safetensors",
        "--scenarios",
        "clean",
    ]
    for arguments, frames in (
        (common, 3),
        (["--bag", "bag", "--labels", "labels"], 6),
        (["--bag", "bag"], 3),
        (["--bag", "bag", "--every", "2", "--labels", "labels", "--frames", "2"], 2),
    ):
        out = tmp_path / f"scores of {len(arguments)} {frames}"
        assert main([*evaluation, *arguments, "--out", str(out)]) == 0
        assert json.loads((out / "evaluation.json").read_text())["evaluated"]["frames"] == frames


def test_a_run_in_fewer_steps_still_reads_unlabelled_frames(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.write_text(recipe.read_text().replace("steps: 2", "steps: 40, pseudo_start: 20, pseudo_ramp: 10"))
    bag, out = write_bag(tmp_path / "bag"), tmp_path / "run"
    train = ["train", "--bag", str(bag), "--label-set", "demo", "--config", str(recipe), "--device", "cpu"]
    train += ["--allow-unlabelled-classes", "--workers", "0", "--out", str(out)]
    assert main([*train, "--steps", "4"]) == 0
    bar = capsys.readouterr().err
    assert "supervised=" in bar
    assert "pseudo=" in bar
    config = json.loads((out / "run.json").read_text())["config"]
    assert [config[name] for name in ("steps", "warmup_steps", "pseudo_start", "pseudo_ramp")] == [4, 3, 2, 1]
    assert [step["loss_pseudo"] > 0 for step in read_log(out)] == [False, False, True, True]


def test_where_every_frame_has_labels_only_a_recipe_that_reads_others_is_refused(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag, out = write_bag(tmp_path / "bag", range(FRAMES)), tmp_path / "run"
    train = ["train", "--bag", str(bag), "--label-set", "demo", "--config", str(recipe), "--device", "cpu"]
    train += ["--allow-unlabelled-classes", "--workers", "0", "--out", str(out)]
    assert main(train) == 2
    assert "every frame has labels" in (complaint := capsys.readouterr().err)
    assert "pseudo_weight: 0" in complaint
    recipe.write_text(recipe.read_text().replace("steps: 2", "steps: 2, pseudo_weight: 0"))
    assert main(train) == 0
    assert [step["loss_supervised"] > 0 == step["loss_pseudo"] for step in read_log(out)] == [True, True]


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (["train", "--bag", "bag", "--labels", "nyu13"], "that is a label set; use --label-set"),
        (["train", "--bag", "bag", "--labels", "mine.yaml"], "that is a label set; use --label-set"),
        (["train", "--bag", "bag"], "training needs --label-set"),
        (["train", "--label-set", "demo"], "no bags: name them with --bag"),
        (
            ["train", "--bag", "bag", "--label-set", "demo", "--label-topic", "/truth"],
            "bag: none has a topic /truth",
        ),
        (["train", "--bag", "bag", "--label-set", "demo", "--splits", "none.yaml"], "none.yaml: cannot read"),
        (
            ["train", "--bag", "bag", "--config", "pretrain", "--label-set", "demo"],
            "--config pretrain learns from images alone; leave --label-set out",
        ),
        (["train", "--config", "pretrain"], "no bags: name them with --bag"),
    ],
)
def test_wrong_use_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_bag(tmp_path / "bag")
    assert main([*command, "--out", "run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line
    assert not (tmp_path / "run").exists()


def test_a_seed_that_is_too_long_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["train", "--bag", "bag", "--out", str(tmp_path / "run"), "--seed", str(1 << 64)])
    assert raised.value.code == 2
    assert "argument --seed: 18446744073709551616 needs more than 64 bits" in capsys.readouterr().err


def test_eval_says_why_nothing_can_be_scored(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag, out = write_bag(tmp_path / "bag"), tmp_path / "run"
    train = ["train", "--bag", str(bag), "--label-set", "demo", "--config", str(recipe), "--device", "cpu"]
    train.append("--allow-unlabelled-classes")
    assert main([*train, "--out", str(out), "--workers", "0"]) == 0
    halves(bag, training=WHOLE[:0], validation=(TimeRange(0, SECOND // 2),)).save(tmp_path / "splits.yaml")
    capsys.readouterr()
    for arguments, complaint in (
        (["--labels", "demo"], "--labels demo: that is a label set; the model has its own, 'demo'"),
        (["--splits", str(tmp_path / "splits.yaml")], "none of the 1 frames that the splits set apart"),
    ):
        evaluation = ["eval", "--checkpoint", str(out / "checkpoint.safetensors"), "--bag", str(bag)]
        assert main([*evaluation, *arguments]) == 2
        assert complaint in capsys.readouterr().err
