"""Which frames are picked, on videos whose frames carry their number."""

import os
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.errors import SkipRNNError
from pipelines.video.decode import EARLY, Sampling, VideoReader, prepare, read_clip
from tests.videos import number_of, write_sound, write_video

NTSC = Fraction(30_000, 1_001)


def on_screen(times, end, sampling):
    """The number of the frame on screen at each step, by definition."""
    steps = [k / sampling.fps for k in range(sampling.steps) if k / sampling.fps + EARLY < end]
    return [max(n for n, time in enumerate(times) if time <= step + EARLY) for step in steps]


def picked(path, sampling):
    return [number_of(frame) for _, frame in VideoReader(path, sampling)]


@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".mkv"])
@pytest.mark.parametrize("rate", [Fraction(24), Fraction(25), NTSC, Fraction(30), Fraction(60)])
def test_the_frame_on_screen_at_each_step_is_picked(tmp_path, rate, suffix):
    path = write_video(tmp_path / f"clip{suffix}", 70, rate)
    times = [float(number / rate) for number in range(70)]
    got = picked(path, Sampling())
    expected = on_screen(times, float(70 / rate), Sampling())
    assert len(got) == len(expected)
    if suffix == ".mkv":  # its timestamps are milliseconds, so at a tie the neighbour may be on screen
        assert all(abs(a - b) <= 1 for a, b in zip(got, expected, strict=True))
        assert np.mean(np.equal(got, expected)) > 0.9
    else:
        assert got == expected


def test_25_frames_a_second_are_taken_as_they_are(tmp_path):
    assert picked(write_video(tmp_path / "clip.avi", 40), Sampling()) == list(range(40))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frames_of_a_variable_rate_are_picked_by_their_times(tmp_path, suffix):
    gaps = [1, 3, 2, 12, 1, 1, 7, 25, 2, 2, 4, 1, 30, 5, 3, 3, 3, 1, 1, 1, 9]  # hundredths of a second
    times = [Fraction(sum(gaps[:n]), 100) for n in range(len(gaps))]
    path = write_video(tmp_path / f"clip{suffix}", times)
    mean = float(times[-1]) / (len(times) - 1)  # how long the last frame is taken to stay
    expected = on_screen([float(time) for time in times], float(times[-1]) + mean, Sampling())
    got = picked(path, Sampling())
    assert got == expected
    assert len(set(got)) < len(times)  # frames that are never on screen at a step were passed over


def test_a_rate_that_the_file_declares_wrongly_does_not_matter(tmp_path):
    times = [Fraction(number, 10) for number in range(12)]
    path = write_video(tmp_path / "clip.mp4", times, rate=Fraction(50))
    assert picked(path, Sampling(fps=10)) == list(range(12))


def test_the_first_seconds_only_are_decoded(tmp_path):
    reader = VideoReader(write_video(tmp_path / "clip.avi", 90), Sampling(seconds=1))
    assert [number_of(frame) for _, frame in reader] == list(range(25))
    assert reader.decoded == 26
    assert not reader.truncated


def test_videos_that_start_late_start_at_their_first_frame(tmp_path):
    times = [Fraction(2) + Fraction(number, 25) for number in range(10)]
    assert picked(write_video(tmp_path / "clip.mkv", times), Sampling()) == list(range(10))


def test_frames_out_of_order_in_the_file_come_in_order(tmp_path):
    path = write_video(tmp_path / "clip.mp4", 40, codec="libx264")  # with B-frames
    assert picked(path, Sampling()) == list(range(40))


@pytest.mark.parametrize("frames", [1, 2])
def test_short_videos_have_their_frames(tmp_path, frames):
    assert picked(write_video(tmp_path / "clip.avi", frames), Sampling()) == list(range(frames))


def test_a_frame_that_stays_is_kept_once(tmp_path):
    clip = read_clip(write_video(tmp_path / "clip.mp4", 10, Fraction(5)), Sampling(), 64)
    assert clip.frames.shape == (10, 3, 224, 224)
    assert clip.places.tolist() == [number // 5 for number in range(50)]


@pytest.mark.parametrize("size", [(34, 58), (322, 18), (16, 16)])
def test_odd_sizes_are_cut_to_the_network_s(tmp_path, size):
    path = write_video(tmp_path / "clip.avi", 3, size=size, codec="mjpeg")
    clip = read_clip(path, Sampling(), 256)
    assert clip.frames.shape == (3, 3, 224, 224)
    assert clip.frames.dtype == torch.uint8


def test_prepare_is_the_transform_of_torchvision_s_weights():
    from torchvision.models import ResNet50_Weights

    frame = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    weights = ResNet50_Weights.IMAGENET1K_V2
    expected = weights.transforms()(torch.from_numpy(frame).permute(2, 0, 1))
    mean, std = (torch.tensor(values)[:, None, None] for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    torch.testing.assert_close((prepare(frame, 232).float() / 255 - mean) / std, expected, rtol=1e-6, atol=1e-6)


def test_a_truncated_file_says_so(tmp_path):
    path = write_video(tmp_path / "clip.avi", 60, codec="mjpeg")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    clip = read_clip(path, Sampling(), 64)
    assert clip.about.status == "truncated"
    assert 20 < clip.about.frames < 40


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.avi", b"", "is empty"),
        ("text.avi", b"not a video\n" * 100, "no video that OpenCV can decode"),
        ("missing.avi", None, "No such file"),
    ],
)
def test_what_is_no_video_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SkipRNNError, match=message):
        read_clip(path, Sampling(), 64)


def test_what_has_no_end_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.avi")
    with pytest.raises(SkipRNNError, match="it is a pipe or a device, not a file; name a video file"):
        read_clip(tmp_path / "pipe.avi", Sampling(), 64)
    with pytest.raises(SkipRNNError, match=r"null (byte|character)"):
        read_clip(tmp_path / "nul\0.avi", Sampling(), 64)


def test_names_that_opencv_dies_of_are_refused(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.avi")
    shutil.copy(write_video(tmp_path / "clip.avi", 4), path)
    with pytest.raises(SkipRNNError, match="opens no file whose name is not UTF-8; rename it"):
        read_clip(path, Sampling(), 64)


def test_sound_alone_is_refused(tmp_path):
    with pytest.raises(SkipRNNError, match="no video that OpenCV can decode"):
        read_clip(write_sound(tmp_path / "sound.avi"), Sampling(), 64)


def test_a_sampling_without_frames_is_refused():
    with pytest.raises(SkipRNNError, match="raise --fps or --seconds"):
        Sampling(fps=0.1, seconds=1)


@pytest.mark.parametrize("name", ["a clip with spaces.avi", "v_ünïcödé_видео_动作.avi"])
def test_names_may_hold_anything(tmp_path, name):
    assert picked(write_video(Path(tmp_path) / name, 4), Sampling()) == [0, 1, 2, 3]
