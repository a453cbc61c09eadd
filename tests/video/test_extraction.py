"""Extraction: what ends in the file, whatever happens on the way."""

import gc
import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from pipelines.data.features import read_entries, reading_videos
from pipelines.data.schema import read_attributes
from pipelines.errors import SkipRNNError
from pipelines.parallel.processes import cores, map_in_processes
from pipelines.tasks import load_data
from pipelines.video import extraction, workers
from pipelines.video.decode import Sampling, read_clip
from pipelines.video.extraction import extract_features, report_path
from pipelines.video.listing import handful, own_videos
from pipelines.video.workers import Failed, Job, Recipe, extract, local, on_ray
from tests.forked import extract_all, start
from tests.videos import TinyNetwork, inline, tiny_task, write_folder, write_sound, write_video

KILLS = int(os.environ.get("SKIPRNN_KILLS", "3"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("videos"))


def run(folder, out, engine=inline, **options):
    videos = own_videos(folder)
    return extract_features(videos, out, tiny_task(videos.classes), TinyNetwork(), engine, **options)


def content(path):
    """All of a feature file but the versions."""
    with h5py.File(path) as file:
        arrays = {}
        file.visititems(
            lambda name, item: arrays.update({name: item[()].tolist()}) if isinstance(item, h5py.Dataset) else None
        )
        return arrays, dict(file.attrs)


def test_a_folder_becomes_a_file_of_features(folder, tmp_path):
    done = run(folder, tmp_path / "out.h5")
    assert (done.videos, done.extracted, done.failed, done.waiting, done.merged) == (12, 12, {}, 0, True)
    entries = read_entries(tmp_path / "out.h5")
    assert [entry.split for entry in entries] == sorted((e.split for e in entries), key=["train", "val", "test"].index)
    network, recipe = TinyNetwork(), Recipe(Sampling(10, 2), 224, 8)
    with reading_videos(tmp_path / "out.h5") as read:
        for entry in entries:
            expected = extract(Job(entry.name, folder / entry.name), network, recipe)
            assert read(entry.name).dtype == np.float16
            np.testing.assert_allclose(read(entry.name), expected.features.numpy(), atol=1e-3)
            assert entry.frames == 8 + int(entry.name[-6:-4])
            assert entry.source_bytes == (folder / entry.name).stat().st_size
    lines = [json.loads(line) for line in report_path(tmp_path / "out.h5").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["ok"] * 12
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.h5.lock", "out.h5", "out.h5.report.jsonl"]


def test_float32_is_kept_on_request(folder, tmp_path):
    run(folder, tmp_path / "out.h5", dtype="float32")
    with reading_videos(tmp_path / "out.h5") as read:
        assert read("class0/clip00.avi").dtype == np.float32


def test_what_is_done_is_not_done_again(folder, tmp_path):
    out = tmp_path / "out.h5"
    videos = own_videos(folder)
    some = [video for video in videos.videos if not video.name.endswith("5.avi")]
    first = run(folder, out, chosen=some)
    assert (first.extracted, first.merged) == (10, True)
    digest = content(out)
    again = run(folder, out, chosen=some)
    assert (again.extracted, again.merged) == (0, True)
    assert content(out) == digest
    more = run(folder, out)
    assert (more.extracted, more.merged) == (2, True)
    run(folder, tmp_path / "whole.h5")
    assert content(out) == content(tmp_path / "whole.h5")
    with pytest.raises(SkipRNNError, match=r"also holds videos not asked for.*--overwrite"):
        run(folder, out, chosen=some)
    assert run(folder, out, chosen=some, overwrite=True).extracted == 0
    assert content(out) == digest


def test_another_split_of_the_same_videos_needs_no_extraction(folder, tmp_path):
    out = tmp_path / "out.h5"
    run(folder, out)
    before = content(out)
    videos = own_videos(folder, seed=1)
    task = tiny_task(videos.classes)
    with pytest.raises(SkipRNNError, match=r"in .* as class ., now it would be in .*; pass --overwrite"):
        extract_features(videos, out, task, TinyNetwork(), inline)
    assert content(out) == before
    again = extract_features(videos, out, task, TinyNetwork(), inline, overwrite=True)
    assert (again.extracted, again.written) == (0, True)
    assert {e.name: e.split for e in read_entries(out)} == {v.name: v.split for v in videos.videos}


def test_a_video_that_changed_is_done_again(tmp_path):
    folder, out = write_folder(tmp_path / "videos"), tmp_path / "out.h5"
    run(folder, out)
    changed = folder / "class0/clip00.avi"
    os.utime(changed, (1, 1))  # the same content
    assert run(folder, out).extracted == 0
    write_video(changed, 5, first=900, codec="mjpeg")
    assert run(folder, out).extracted == 1
    with reading_videos(out) as read:
        assert len(read("class0/clip00.avi")) == 2  # of 5 at 25 a second


def test_features_outlive_their_videos(tmp_path):
    folder, out = write_folder(tmp_path / "videos"), tmp_path / "out.h5"
    videos = own_videos(folder)
    run(folder, out)
    (folder / "class0/clip00.avi").unlink()
    again = extract_features(videos, out, tiny_task(videos.classes), TinyNetwork(), inline)
    assert (again.extracted, again.merged, again.written) == (0, True, False)


def test_features_made_in_another_way_are_kept_apart(folder, tmp_path):
    out = tmp_path / "out.h5"
    run(folder, out)
    videos = own_videos(folder)
    other = tiny_task(videos.classes, fps=5.0, steps=10)
    with pytest.raises(SkipRNNError, match=r"out.h5 was made with fps 10.0, not 5.0; pass --overwrite"):
        extract_features(videos, out, other, TinyNetwork(), inline)
    assert extract_features(videos, out, other, TinyNetwork(), inline, overwrite=True).extracted == 12


def test_parts_made_in_another_way_never_mix(folder, tmp_path):
    out = tmp_path / "out.h5"
    run(folder, out, shard=(0, 2))
    videos = own_videos(folder)
    other = tiny_task(videos.classes, fps=5.0, steps=10)
    assert extract_features(videos, out, other, TinyNetwork(), inline).extracted == 12
    with h5py.File(out) as file:
        assert np.diff(file["offsets"]).max() <= 10
    with pytest.raises(SkipRNNError, match=r"was made with fps 5.0, not 10.0"):
        run(folder, out)
    assert run(folder, out, overwrite=True).extracted == 6
    run(folder, tmp_path / "whole.h5")
    assert content(out) == content(tmp_path / "whole.h5")


def test_a_file_that_appears_meanwhile_is_not_lost(folder, tmp_path):
    out = tmp_path / "out.h5"
    videos = own_videos(folder)

    def slow(jobs, network, recipe):
        yield from inline(jobs, network, recipe)
        extract_features(videos, out, tiny_task(videos.classes, fps=5.0, steps=10), TinyNetwork(), inline)

    with pytest.raises(SkipRNNError, match=r"was made with fps 5.0, not 10.0"):
        run(folder, out, slow)


def test_a_damaged_file_says_so(folder, tmp_path):
    out = tmp_path / "out.h5"
    run(folder, out)
    with h5py.File(out) as file:
        place = file["features"].id.get_offset()
    data = bytearray(out.read_bytes())
    data[place + 3] ^= 1
    out.write_bytes(data)
    videos = own_videos(folder, seed=1)
    with pytest.raises(SkipRNNError, match=r"out.h5 is damaged where it has .*; move it away"):
        extract_features(videos, out, tiny_task(videos.classes), TinyNetwork(), inline, overwrite=True)
    with pytest.raises(SkipRNNError, match=r"out.h5: the features of .* were changed after they were made; extract"):
        load_data(out, "videos", ("train",))


def test_a_file_of_something_else_is_left_alone(folder, tmp_path):
    out = tmp_path / "out.h5"
    out.write_text("precious")
    with pytest.raises(SkipRNNError, match="holds no features; choose another --out"):
        run(folder, out, overwrite=True)
    assert out.read_text() == "precious"


@pytest.fixture
def spoilt(tmp_path):
    """A folder with everything that may be wrong with a video."""
    folder = write_folder(tmp_path / "videos", each=4)
    (folder / "class0" / "empty.avi").write_bytes(b"")
    (folder / "class0" / "text.avi").write_text("not a video\n" * 99)
    write_sound(folder / "class1" / "sound.avi")
    cut = write_video(folder / "class1" / "cut.avi", 40, codec="mjpeg")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    write_video(folder / "class0" / "odd.avi", 5, size=(34, 58), codec="mjpeg")
    write_video(folder / "class0" / "one frame.avi", 1, codec="mjpeg")
    write_video(folder / "class1" / "clip00 видео ü.avi", 6, codec="mjpeg")
    write_video(folder / "class1" / "deeper" / "clip00.avi", 7, codec="mjpeg")  # a name that is there already
    return folder


def test_faults_are_reported_by_name_and_cost_nothing_else(spoilt, tmp_path):
    out = tmp_path / "out.h5"
    first = run(spoilt, out)
    assert not first.merged
    assert not out.exists()
    assert set(first.failed) == {"class0/empty.avi", "class0/text.avi", "class1/sound.avi"}
    assert "is empty" in first.failed["class0/empty.avi"]
    lines = {record["video"]: record for record in map(json.loads, report_path(out).read_text().splitlines())}
    assert lines["class1/cut.avi"]["status"] == "truncated"
    assert 5 < lines["class1/cut.avi"]["frames"] < 35
    assert lines["class0/text.avi"]["status"] == "failed"
    assert sum(line["status"] == "ok" for line in lines.values()) == 12
    allowed = run(spoilt, out, allow_failures=True)
    assert (allowed.extracted, allowed.merged, allowed.truncated) == (0, True, 1)
    names = {entry.name for entry in read_entries(out)}
    assert len(names) == 13
    assert {"class1/clip00.avi", "class1/deeper/clip00.avi", "class1/clip00 видео ü.avi"} <= names
    with reading_videos(out) as read:
        assert len(read("class0/one frame.avi")) == 1
        assert len(read("class1/deeper/clip00.avi")) != len(read("class1/clip00.avi"))


def test_mended_videos_are_done_by_a_rerun(spoilt, tmp_path):
    run(spoilt, tmp_path / "out.h5")
    for name in ("class0/empty.avi", "class0/text.avi", "class1/sound.avi"):
        write_video(spoilt / name, 6, codec="mjpeg")
    again = run(spoilt, tmp_path / "out.h5")
    assert (again.extracted, again.failed, again.merged) == (3, {}, True)


def test_features_that_do_not_fit_half_precision_fail_by_name(folder, tmp_path):
    class Loud(TinyNetwork):
        def of_clip(self, clip, batch_size):
            return super().of_clip(clip, batch_size) * (1e6 if clip.about.frames == 13 else 1)

    videos = own_videos(folder)
    done = extract_features(videos, tmp_path / "out.h5", tiny_task(videos.classes), Loud(), inline)
    assert sorted(done.failed) == ["class0/clip05.avi", "class1/clip05.avi"]
    assert "not finite in float16" in done.failed["class0/clip05.avi"]


def test_two_shards_make_the_whole(folder, tmp_path):
    run(folder, tmp_path / "whole.h5")
    first = run(folder, tmp_path / "out.h5", shard=(1, 2))
    assert (first.extracted, first.waiting, first.merged) == (6, 6, False)
    second = run(folder, tmp_path / "out.h5", shard=(0, 2))
    assert (second.extracted, second.waiting, second.merged) == (6, 0, True)
    assert content(tmp_path / "out.h5") == content(tmp_path / "whole.h5")


def test_a_damaged_part_is_done_again(folder, tmp_path):
    out = tmp_path / "out.h5"
    run(folder, out, shard=(0, 2))
    parts = sorted((tmp_path / "out.h5.parts").glob("*/*.safetensors"))
    parts[0].write_bytes(parts[0].read_bytes()[:-20])  # its header tells
    data = bytearray(parts[1].read_bytes())
    data[-4] ^= 1
    parts[1].write_bytes(data)
    with pytest.raises(SkipRNNError, match=r"was damaged and is removed.*run the same command again"):
        run(folder, out)
    assert run(folder, out).merged
    run(folder, tmp_path / "whole.h5")
    assert content(out) == content(tmp_path / "whole.h5")


@pytest.mark.parametrize("damage", ["pipe", "folder", "text", "metadata", "fields", "deep"])
def test_whatever_stands_for_a_part_is_done_again(folder, tmp_path, damage):
    out = tmp_path / "out.h5"
    run(folder, out, shard=(0, 2))
    part = min((tmp_path / "out.h5.parts").glob("*/*.safetensors"))
    with safe_open(part, "numpy") as file:
        about, features = json.loads(file.metadata()["about"]), file.get_tensor("features")
    part.unlink()
    if damage == "pipe":
        os.mkfifo(part)
    elif damage == "folder":
        part.mkdir()
    elif damage == "text":
        part.write_text("nothing")
    else:
        wrong = {"metadata": "3", "fields": json.dumps({**about, "frames": "3"}), "deep": "[" * 10**5}[damage]
        save_file({"features": features}, part, {"about": wrong})
    if damage == "folder":  # it is somebody's, and perhaps not empty
        with pytest.raises(SkipRNNError, match=r"cannot write .*safetensors: it is a folder"):
            run(folder, out)
        part.rmdir()
    assert run(folder, out).merged
    run(folder, tmp_path / "whole.h5")
    assert content(out) == content(tmp_path / "whole.h5")


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"reason": 3}', b"\xff", b"[" * 10**5, None])
def test_damaged_records_of_failures_are_made_again(spoilt, tmp_path, damage):
    out = tmp_path / "out.h5"
    failed = run(spoilt, out).failed
    for record in (tmp_path / "out.h5.parts").glob("*/*.failed.json"):
        if damage is None:
            record.unlink()
            os.mkfifo(record)
        else:
            record.write_bytes(damage)
    assert run(spoilt, out, shard=(98, 99)).waiting == 3
    assert run(spoilt, out).failed == failed


def test_names_that_are_not_utf_8_fail_by_name(tmp_path):
    folder = write_folder(tmp_path / "videos", each=4)
    name = os.fsdecode(b"class0/caf\xe9.avi")
    shutil.copy(folder / "class0/clip00.avi", folder / name)
    done = run(folder, tmp_path / "out.h5")
    assert set(done.failed) == {name}
    assert "name is not UTF-8; rename it" in done.failed[name]
    lines = [json.loads(line) for line in report_path(tmp_path / "out.h5").read_text("ascii").splitlines()]
    assert [line["video"] for line in lines if line["status"] == "failed"] == [name]
    assert run(folder, tmp_path / "out.h5", allow_failures=True).written


def test_a_folder_whose_name_is_not_utf_8_is_written_in_escapes(tmp_path, monkeypatch):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    write_folder(tmp_path / "videos", each=4).rename(folder)
    monkeypatch.chdir(folder)
    run(Path(), tmp_path / "out.h5")
    assert read_attributes(tmp_path / "out.h5")["source"] == f"{tmp_path}/caf\\udce9"


def some(folder):
    return handful(own_videos(folder).videos, 6)


def test_a_smaller_extraction_leaves_the_parts_of_a_larger_one(folder, tmp_path):
    out, parts = tmp_path / "out.h5", tmp_path / "out.h5.parts"
    assert run(folder, out, shard=(0, 2)).waiting == 6
    small = run(folder, out, chosen=some(folder))
    assert (small.merged, small.videos) == (True, 6)
    names = {video.name for video in some(folder)}
    left = {video.name for video in sorted(own_videos(folder).videos, key=lambda v: v.name)[::2]} - names
    assert len(list(parts.glob("*/*.safetensors"))) == len(left) > 0
    last = run(folder, out, shard=(1, 2))
    assert (last.waiting, last.merged) == (0, True)
    run(folder, tmp_path / "whole.h5")
    assert content(out) == content(tmp_path / "whole.h5")
    assert not parts.exists()


def test_failures_of_a_larger_extraction_stay_until_it_is_merged(spoilt, tmp_path):
    out, parts = tmp_path / "out.h5", tmp_path / "out.h5.parts"
    run(spoilt, out, shard=(0, 2))
    run(spoilt, out, chosen=[video for video in own_videos(spoilt).videos if "/clip" in video.name])
    last = run(spoilt, out, shard=(1, 2), allow_failures=True)
    assert (last.waiting, len(last.failed), last.merged) == (0, 3, True)
    assert not parts.exists()


def test_a_video_that_failed_and_was_removed_leaves_nothing(spoilt, tmp_path):
    run(spoilt, tmp_path / "out.h5")
    for name in ("class0/empty.avi", "class0/text.avi", "class1/sound.avi"):
        (spoilt / name).unlink()
    assert run(spoilt, tmp_path / "out.h5").merged
    assert not (tmp_path / "out.h5.parts").exists()


def test_locks_that_others_hold_are_left_to_them(folder, tmp_path):
    out = tmp_path / "out.h5"
    videos = own_videos(folder)
    parameters = {"task": "videos", **tiny_task(videos.classes).parameters(), "dtype": "float16"}
    other = extraction._Store(out, parameters, videos.videos, False)
    name = next(video.name for video in videos.videos if video not in some(folder))
    lock = other.lock(name)
    run(folder, out, chosen=some(folder))
    assert [path.name for path in (tmp_path / "out.h5.parts").glob("*/*")] == [Path(lock.lock_file).name]
    assert other.lock(name) is None
    lock.release()
    assert run(folder, out).extracted == 6
    assert not (tmp_path / "out.h5.parts").exists()


def test_a_folder_of_parts_that_cannot_be_made_is_named(folder, tmp_path):
    (tmp_path / "out.h5.parts").write_text("in the way")
    with pytest.raises(SkipRNNError, match=r"cannot write .*out.h5.parts/.*; choose another --out"):
        run(folder, tmp_path / "out.h5")


@pytest.mark.parametrize("limit", [1, 1000, 4000, 9000])  # bytes: no part; no report; the file in part
def test_on_a_full_disk_what_is_done_is_kept(folder, tmp_path, limit):
    out = tmp_path / "out.h5"
    process, result = start(extract_all, folder, out, limit)
    error = result.recv()
    process.join()
    kept = len(list((tmp_path / "out.h5.parts").glob("*/*.safetensors")))
    assert isinstance(error, SkipRNNError)
    assert str(error).startswith("cannot write ")
    assert "File too large; check the folder's permissions and free space" in str(error)
    assert kept == (0 if limit == 1 else 12)
    assert not out.exists()
    assert run(folder, out).extracted == 12 - kept


def test_a_split_without_videos_is_refused_at_once(folder, tmp_path):
    videos = own_videos(folder)
    train = [video for video in videos.videos if video.split == "train"]
    with pytest.raises(SkipRNNError, match="leave none for val"):
        run(folder, tmp_path / "out.h5", chosen=train)
    assert not list(tmp_path.iterdir())


class Deadly(TinyNetwork):
    """Takes its process along on one of the videos."""

    def of_clip(self, clip, batch_size):
        if clip.about.frames == 10:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().of_clip(clip, batch_size)


@pytest.mark.usefixtures("forked")
def test_processes_that_die_cost_only_their_video(folder, tmp_path):
    videos = own_videos(folder)
    done = extract_features(videos, tmp_path / "out.h5", tiny_task(videos.classes), Deadly(), local(2))
    assert sorted(done.failed) == ["class0/clip02.avi", "class1/clip02.avi"]
    assert "died" in done.failed["class0/clip02.avi"]
    assert done.extracted == 10


@pytest.mark.usefixtures("forked")
def test_processes_that_decode_feed_a_network_elsewhere(folder):
    recipe = Recipe(Sampling(10, 2), 224, 8)
    names = ["class0/clip00.avi", "class1/clip03.avi"]
    jobs = iter([Job(name, folder / name) for name in names])
    begin = partial(workers._begin, None, recipe)
    clips = {job.name: clip for job, clip in map_in_processes(1, workers._work, jobs, begin=begin)}
    for name in names:
        assert torch.equal(clips[name].frames, read_clip(folder / name, Sampling(10, 2), 224).frames)


class Elsewhere:
    """A network on a GPU, as whoever feeds it sees it."""

    mean = SimpleNamespace(device=torch.device("cuda"))

    def __init__(self):
        self.done = []

    def begin(self, clip, batch_size):
        self.done.append("begun")

        def wait():
            self.done.append("ended")
            return TinyNetwork().of_clip(clip, batch_size)

        return wait


@pytest.mark.usefixtures("forked")
def test_a_gpu_has_the_next_video_before_it_is_done_with_the_last(tmp_path):
    folder = write_folder(tmp_path / "videos", each=4)
    (folder / "class0/clip02.avi").write_bytes(b"no video")
    videos, network = own_videos(folder), Elsewhere()
    options = {"executor": local(1), "allow_failures": True}
    done = extract_features(videos, tmp_path / "out.h5", tiny_task(videos.classes), network, **options)
    assert (done.extracted, list(done.failed)) == (7, ["class0/clip02.avi"])
    assert network.done == ["begun", *["begun", "ended"] * 6, "ended"]
    run(folder, tmp_path / "here.h5", allow_failures=True)
    assert content(tmp_path / "out.h5") == content(tmp_path / "here.h5")


class Slow(TinyNetwork):
    """Says that it has begun, and takes its time over every video."""

    def __init__(self, begun):
        super().__init__()
        self.begun = begun

    def of_clip(self, clip, batch_size):
        self.begun.touch()
        time.sleep(60)
        return super().of_clip(clip, batch_size)


@pytest.mark.usefixtures("forked")
def test_an_interruption_does_not_wait_for_the_videos_in_hand(folder, tmp_path):
    at_work, begun = [], tmp_path / "begun"

    def interrupt():
        while not begun.exists():
            time.sleep(0.05)
        at_work.extend(multiprocessing.active_children())
        os.kill(os.getpid(), signal.SIGINT)

    jobs = iter([Job("class0/clip00.avi", folder / "class0/clip00.avi")])
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        list(map_in_processes(1, workers._work, jobs, begin=partial(workers._begin, Slow(begun), RECIPE)))
    assert [process.exitcode for process in at_work] == [1]  # ended amid its work; after it, it would be 0


def test_any_fault_of_a_decoder_fails_one_video(folder, tmp_path, monkeypatch):
    def read(path, sampling, size):
        if path.name == "clip03.avi":
            raise MemoryError("too large")
        return read_clip(path, sampling, size)

    monkeypatch.setattr(workers, "read_clip", read)
    done = run(folder, tmp_path / "out.h5")
    assert done.failed["class0/clip03.avi"] == "MemoryError: too large"
    assert done.extracted == 10


@pytest.mark.slow(reason="a Ray cluster, and workers that begin")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of files and processes that older versions of Ray leave
def test_ray_makes_the_same_file(folder, tmp_path):
    pytest.importorskip("ray")
    run(folder, tmp_path / "whole.h5")
    done = run(folder, tmp_path / "out.h5", on_ray(cores() + 1, "local"))  # one more than there is room for
    assert (done.extracted, done.merged) == (12, True)
    assert content(tmp_path / "out.h5") == content(tmp_path / "whole.h5")
    gc.collect()  # what Ray left open, here, where it is no error


def test_killed_at_any_moment_a_rerun_finishes_the_same(folder, tmp_path):
    whole, out = tmp_path / "whole.h5", tmp_path / "out" / "out.h5"
    process, result = start(extract_all, folder, whole)
    begun = time.monotonic()
    assert result.recv() == 12
    seconds = time.monotonic() - begun
    process.join()
    draws = random.Random(0)
    for _ in range(KILLS):
        process, _ = start(extract_all, folder, out)
        time.sleep(draws.uniform(0, seconds))
        process.kill()
        process.join()
        if out.exists():
            assert content(out) == content(whole)
            out.unlink()
    process, _ = start(extract_all, folder, out)
    process.join()
    assert process.exitcode == 0
    assert content(out) == content(whole)
    assert sorted(path.name for path in out.parent.iterdir()) == [".out.h5.lock", "out.h5", "out.h5.report.jsonl"]


def test_two_processes_share_the_work(folder, tmp_path):
    out = tmp_path / "out.h5"
    started = [start(extract_all, folder, out), start(extract_all, folder, out)]
    assert sum(result.recv() for _, result in started) == 12
    for process, _ in started:
        process.join()
        assert process.exitcode == 0
    run(folder, tmp_path / "whole.h5")
    assert content(out) == content(tmp_path / "whole.h5")
    assert not (tmp_path / "out.h5.parts").exists()


def test_a_video_another_process_is_at_is_waited_for(folder, tmp_path, monkeypatch):
    out = tmp_path / "out.h5"
    videos = own_videos(folder)
    name = videos.videos[0].name
    parameters = {"task": "videos", **tiny_task(videos.classes).parameters(), "dtype": "float16"}
    store = extraction._Store(out, parameters, videos.videos, False)
    lock = store.lock(name)
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        store.put(Job(name, folder / name), extract(Job(name, folder / name), TinyNetwork(), RECIPE))
        lock.release()

    monkeypatch.setattr(extraction.time, "sleep", sleep)
    done = run(folder, out)
    assert len(waits) == 1
    assert (done.extracted, done.merged) == (11, True)


RECIPE = Recipe(Sampling(10, 2), 224, 8)


def test_a_failure_is_no_result(tmp_path):
    assert isinstance(extract(Job("x", tmp_path / "x.avi"), TinyNetwork(), RECIPE), Failed)


def test_training_data_comes_out(folder, tmp_path):
    run(folder, tmp_path / "out.h5")
    task, data = load_data(tmp_path / "out.h5", "videos", ("train", "val", "test"))
    assert task.name == "videos"
    batch = data.splits["train"].to("cpu").take(slice(0, 2))
    assert batch.x.shape == (2, 20, 6)
    assert batch.lengths is None
