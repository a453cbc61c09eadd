"""Which videos there are, and their classes, groups and splits."""

import csv
import os
from collections import Counter
from pathlib import Path

import pytest

from pipelines.errors import SkipRNNError
from pipelines.video.listing import handful, own_videos, ucf101

SECRET = b"password/hunter2"  # what a file that was named by mistake may hold, and no message repeats
REAL = Path(os.environ.get("SKIPRNN_REAL_DATA", Path(__file__).parents[3] / "shared" / "data")) / "ucf101_subset"


@pytest.fixture
def small(tmp_path):
    """UCF-101 in small: two classes, lists with the line ends and numbers of the official ones."""
    lists, root = tmp_path / "lists", tmp_path / "UCF-101"
    lists.mkdir()
    (lists / "classInd.txt").write_bytes(b"1 Archery\r\n2 HandstandPushups\r\n")
    names = [
        f"{folder}/v_{stem}_g{group:02}_c{clip:02}.avi"
        for folder, stem in (("Archery", "Archery"), ("HandstandPushups", "HandStandPushups"))
        for group in range(1, 21)
        for clip in (1, 2)
    ]
    numbers = {"Archery": 1, "HandstandPushups": 2}
    test = [name for name in names if int(name[-10:-8]) <= 5]
    train = [f"{name} {numbers[name.split('/')[0]]}" for name in names if name not in test]
    (lists / "trainlist01.txt").write_bytes("\r\n".join([*train, ""]).encode())
    (lists / "testlist01.txt").write_bytes("\r\n".join([*test, ""]).encode())
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root, lists


def test_official_lists_say_class_and_split(small):
    found = ucf101(*small)
    assert found.classes == ["Archery", "HandstandPushups"]
    assert (len(found.videos), found.missing, found.unlisted) == (80, 0, 0)
    by_name = {video.name: video for video in found.videos}
    assert by_name["HandstandPushups/v_HandStandPushups_g03_c01.avi"].label == 1  # classInd counts from 1
    assert by_name["HandstandPushups/v_HandStandPushups_g03_c01.avi"].split == "test"
    assert by_name["Archery/v_Archery_g06_c01.avi"].split in ("train", "val")


def test_validation_takes_whole_groups_of_each_class(small):
    videos = ucf101(*small, val=0.15).videos
    sides = {}
    for video in videos:
        sides.setdefault(video.group, set()).add(video.split)
    assert all(len(splits) == 1 for splits in sides.values())
    held = Counter(group.split("/")[0] for group, splits in sides.items() if splits == {"val"})
    assert held == {"Archery": 3, "HandstandPushups": 3}  # of 15
    assert ucf101(*small, seed=1).videos != videos
    assert ucf101(*small).videos == videos


def test_what_is_missing_or_unlisted_is_counted(small):
    root, lists = small
    (root / "Archery/v_Archery_g01_c01.avi").unlink()
    (root / "Archery/more.avi").touch()
    (root / "Archery/.hidden.avi").touch()
    (root / "Archery/notes.txt").touch()
    found = ucf101(root, lists)
    assert (len(found.videos), found.missing, found.unlisted) == (79, 1, 1)


def test_lists_and_files_may_differ_in_case(small):
    root, lists = small
    (root / "HandstandPushups/v_HandStandPushups_g03_c01.avi").rename(
        root / "HandstandPushups/v_HandstandPushups_g03_c01.avi"
    )
    assert ucf101(root, lists).missing == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("classInd.txt", None, r"cannot read .*classInd.txt: No such file .*--splits$"),
        ("classInd.txt", b"1 Archery\n\n0 " + SECRET, r"classInd.txt, line 3: it is no number, counted from 1, and a"),
        ("trainlist01.txt", b"\n" + SECRET, "trainlist01.txt, line 2: its video is of a class that classInd.txt does"),
        ("testlist01.txt", b"\xff\xfe", "cannot read .*testlist01.txt: truncated, damaged or not a list of UCF-101"),
    ],
)
def test_damaged_lists_are_refused(small, name, content, message):
    root, lists = small
    if content is None:
        (lists / name).unlink()
    else:
        (lists / name).write_bytes(content)
    with pytest.raises(SkipRNNError, match=message) as refused:
        ucf101(root, lists)
    assert SECRET.decode() not in str(refused.value)


def test_lists_that_are_pipes_are_not_waited_for(small, tmp_path):
    root, lists = small
    for path in (lists / "testlist01.txt", tmp_path / "list.csv"):
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    with pytest.raises(SkipRNNError, match=r"testlist01.txt: it is a pipe or a device.*--splits"):
        ucf101(root, lists)
    with pytest.raises(SkipRNNError, match=r"list.csv: it is a pipe or a device, not a file; name a folder of videos"):
        own_videos(tmp_path / "list.csv")


def test_folders_without_the_videos_are_refused(small, tmp_path):
    _, lists = small
    with pytest.raises(SkipRNNError, match=r"no folder .*get them from https://www.crcv.ucf.edu"):
        ucf101(tmp_path / "nothing", lists)
    with pytest.raises(SkipRNNError, match=r"holds none of the videos.*Archery/v_Archery_g01_c01.avi"):
        ucf101(lists, lists)


def test_a_folder_for_each_class(small):
    root, _ = small
    found = own_videos(root)
    assert found.classes == ["Archery", "HandstandPushups"]
    assert Counter((v.label, v.split) for v in found.videos) == {
        (label, split): count for label in (0, 1) for split, count in (("train", 28), ("val", 6), ("test", 6))
    }
    assert own_videos(root).videos == found.videos


def write_list(path, rows, columns=("file", "label", "group", "split")):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([row[: len(columns)] for row in rows])
    return path


def test_a_list_with_splits_and_groups(tmp_path):
    for name in "abcd":
        (tmp_path / f"{name}.mp4").touch()
    rows = [("a.mp4", "x", "1", "train"), ("b.mp4", "y", "1", "train"), ("c.mp4", "x", "2", "val")]
    path = write_list(tmp_path / "list.csv", [*rows, ("d.mp4", "y", "", "test"), ("gone.mp4", "y", "", "test")])
    found = own_videos(path)
    assert [(v.name, v.label, v.group, v.split) for v in found.videos] == [
        ("a.mp4", 0, "1", "train"), ("b.mp4", 1, "1", "train"), ("c.mp4", 0, "2", "val"),
        ("d.mp4", 1, "d.mp4", "test"), ("gone.mp4", 1, "gone.mp4", "test"),
    ]  # fmt: skip


def test_groups_are_drawn_as_one(tmp_path):
    rows = []
    for number in range(40):
        (tmp_path / f"{number}.mp4").touch()
        rows.append((f"{number}.mp4", "xy"[number % 2], f"scene{number // 4}"))
    found = own_videos(write_list(tmp_path / "list.csv", rows, ("file", "label", "group")))
    sides = {}
    for video in found.videos:
        sides.setdefault(video.group, set()).add(video.split)
    assert all(len(splits) == 1 for splits in sides.values())
    assert {split for splits in sides.values() for split in splits} == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([("a.mp4", "x")], ("file", "class"), "must have the columns file and label"),
        ([], ("file", "label"), "must have the columns file and label, and a row"),
        ([("a.mp4", "")], ("file", "label"), "line 2: it names no label"),
        ([("a.mp4", "x"), ("a.mp4", "y")], ("file", "label"), "line 3: 'a.mp4' is listed twice"),
        ([("a.mp4", "x", "", "dev")], ("file", "label", "group", "split"), "line 2: unknown split 'dev'"),
        ([("gone.mp4", "x")], ("file", "label"), "none of its 1 files exists"),
        ([("a.mp4", "x")], ("file", "label"), "all videos are of the class 'x'"),
        (
            [("a.mp4", "x", "g", "train"), ("b.mp4", "y", "g", "test")],
            ("file", "label", "group", "split"),
            "the group 'g' stands in the splits test, train",
        ),
    ],
)
def test_lists_that_contradict_themselves_are_refused(tmp_path, rows, columns, message):
    for name in "ab":
        (tmp_path / f"{name}.mp4").touch()
    with pytest.raises(SkipRNNError, match=message):
        own_videos(write_list(tmp_path / "list.csv", rows, columns))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"file,label\na.mp4,x\nb.mp4,\xff\n", "truncated, damaged or not a CSV list .*utf-8"),
        (b"file,label\na.mp4,x\n\0b.mp4,y\n", "not a CSV list .*it holds zero bytes"),
        (b"file,label\na.mp4," + b"x" * 2**18, "not a CSV list .*field larger than field limit"),
        (SECRET * 1000, "must have the columns file and label"),
        (b"file,label,split\na.mp4,x," + SECRET * 1000, "line 2: unknown split 'password/hunter2password/hunter2.{8}'"),
        (b'file,label\n"a\nb.mp4",x\n"a\nb.mp4",y\n', r"line 5: 'a\\nb.mp4' is listed twice"),
    ],
)  # fmt: skip
def test_lists_that_are_no_tables_are_refused(tmp_path, content, message):
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(SkipRNNError, match=message) as refused:
        own_videos(tmp_path / "list.csv")
    assert len(str(refused.value)) < 500


def test_what_is_neither_is_refused(tmp_path):
    with pytest.raises(SkipRNNError, match="name a folder of videos or a CSV list"):
        own_videos(tmp_path / "nothing")
    with pytest.raises(SkipRNNError, match="holds no folders of videos"):
        own_videos(tmp_path)


def test_a_handful_has_all_splits_and_classes(small):
    videos = ucf101(*small).videos
    some = handful(videos, 12)
    assert Counter((v.label, v.split) for v in some) == {
        (label, split): 2 for label in (0, 1) for split in ("train", "val", "test")
    }
    assert handful(videos, 1000) == handful(videos, 80)
    assert {v.split for v in handful(videos, 3)} == {"train", "val", "test"}
    assert {v.label for v in handful(videos, 2)} == {0, 1}


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.exists(), reason=f"no real data in {REAL}")
def test_the_real_lists_and_clips():
    found = ucf101(REAL / "videos", REAL / "ucfTrainTestlist")
    assert len(found.classes) == 101
    assert (len(found.videos), found.missing, found.unlisted) == (180, 13_320 - 180, 0)
    assert Counter(v.split for v in found.videos) == {"train": 99, "val": 27, "test": 54}
