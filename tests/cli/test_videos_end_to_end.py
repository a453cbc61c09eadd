"""From videos to predictions and figures, as a user goes: extract, train, evaluate, predict, draw."""

import json
import shutil

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from pipelines.data.features import read_entries
from pipelines.errors import SkipRNNError
from pipelines.runs.figures import plot_usage
from pipelines.runs.load import load_run
from pipelines.runs.prediction import Predictor
from pipelines.tasks.drawing import SKIPPED, USED
from pipelines.video import contact_sheet
from pipelines.video import lookup as video_source
from pipelines.video.contact_sheet import COLUMNS, Sheet, contact_sheets
from pipelines.video.decode import Sampling
from tests.videos import COUNTS, STEPS, WIDTH, entries_of, features_of, write_folder, write_video

WAY = ("--network", "resnet18", "--weights", "random", "--fps", "10", "--seconds", "2", "--dtype", "float32")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("videos"), each=4)


@pytest.fixture(scope="module")
def features(videos, tmp_path_factory):
    from click.testing import CliRunner

    from skiprnn_cli.main import cli

    out = tmp_path_factory.mktemp("features") / "clips.h5"
    result = CliRunner().invoke(cli, ["extract-features", "videos", str(videos), "--out", str(out), *WAY])
    assert result.exit_code == 0, result.output
    assert f"wrote {out}: 8 of 8 videos; now 8 videos, 34 frames" in result.output
    return out


@pytest.fixture
def run(features, make_run):
    return make_run(task="videos", data=str(features), num_layers=2, hidden_size=8, steps=12, lam=1e-2, lr=3e-2)


@pytest.fixture
def expected(run, features):
    """What the model says of the test split by its features: names, probabilities, gates."""
    trained = load_run(run)
    names = [entry.name for entry in read_entries(features) if entry.split == "test"]
    with torch.no_grad():
        output, gate = trained.model(trained.sequences.take(slice(None)).x)
    return names, output.softmax(1).tolist(), gate.bool()


def test_a_video_is_predicted_as_its_features_are(run, videos, expected, monkeypatch):
    names, probabilities, gates = expected
    predictor = Predictor(run)
    looked = []
    prepare = video_source.prepare
    monkeypatch.setattr(video_source, "prepare", lambda frame, size: looked.append(1) or prepare(frame, size))
    for name, probability, gate in zip(names, probabilities, gates, strict=True):
        looked.clear()
        (said,) = predictor.file(videos / name)
        assert list(said.answer["probabilities"].values()) == pytest.approx(probability, abs=1e-4)
        frames = 8 + int(name[-6:-4])
        frames = len(range(0, frames * 10, 25))  # from 25 to 10 frames a second
        assert (said.frames, said.given, said.used) == (frames, 20, int(gate.sum()))
        assert said.frames_used == len(looked) == int(gate[:frames].sum())


def test_every_frame_used_is_the_plain_cell(run, features, videos):
    (said,) = Predictor(run, compare=True).file(videos / "class0/clip00.avi")
    assert said.seconds_with_every_frame > 0
    trained = load_run(run, split="test")
    entries = read_entries(features)
    split = next(entry.split for entry in entries if entry.name == "class0/clip00.avi")
    rows = [entry.name for entry in entries if entry.split == split]
    x = load_run(run, split=split).sequences.take(slice(None)).x[rows.index("class0/clip00.avi")]
    plain = torch.nn.LSTM(512, 8, 2, batch_first=True)
    weights = {k.removeprefix("rnn."): v for k, v in trained.model.state_dict().items() if k.startswith("rnn.")}
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    start = weights["initial_h"][:, None], weights["initial_c"][:, None]
    with torch.no_grad():
        output, _ = plain(x[None], start)
        expected = trained.model.head(output[0, -1]).softmax(0).tolist()
    assert list(said.answer_with_every_frame["probabilities"].values()) == pytest.approx(expected, abs=1e-4)


def test_true_lengths_end_at_the_last_frame(features, make_run, videos):
    run = make_run(task="videos", data=str(features), true_lengths=True, steps=2)
    (said,) = Predictor(run).file(videos / "class0/clip00.avi")
    assert said.given == said.frames == 4


def test_videos_of_other_weights_are_refused(run, videos):
    with pytest.raises(SkipRNNError, match="not those whose features the run was trained on"):
        next(Predictor(run, weights="random:9").file(videos / "class0/clip00.avi"))


def test_broken_videos_are_refused(run, tmp_path):
    (tmp_path / "text.avi").write_text("not a video")
    predictor = Predictor(run)
    with pytest.raises(SkipRNNError, match="no video that OpenCV can decode"):
        next(predictor.file(tmp_path / "text.avi"))
    with pytest.raises(SkipRNNError, match="No such file"):
        next(predictor.file(tmp_path / "missing.avi"))
    with pytest.raises(SkipRNNError, match="holds one sequence; drop --index"):
        next(predictor.file(write_video(tmp_path / "one.avi", 3), index=1))
    with pytest.raises(SkipRNNError, match="is one video; drop --dataset"):
        next(predictor.file(tmp_path / "one.avi", dataset="x"))


def test_only_videos_are_compared(run, features):
    with pytest.raises(SkipRNNError, match="drop --compare"):
        next(Predictor(run, compare=True).file(features))


def test_the_command_says_classes_frames_and_times(run, videos, skiprnn):
    result = skiprnn("predict", run, videos / "class1/clip02.avi", "--compare")
    assert result.exit_code == 0, result.output
    assert "class1/clip02.avi: class class" in result.output
    assert "of 4 frames (" in result.output
    assert "of 16 absent ones" in result.output
    assert "with every frame used: class class" in result.output
    assert json.loads(skiprnn("predict", run, videos / "class1/clip02.avi", "--json").output)["frames"] == 4


def test_features_made_elsewhere_have_no_videos(tmp_path, make_run, videos):
    from pipelines.data.features import write_features
    from pipelines.tasks import Ucf101

    task = Ucf101(WIDTH, STEPS, ("a", "b"), 3.0, 2.0)
    path = write_features(
        tmp_path / "f.h5", entries_of(COUNTS), features_of, {"task": task.name, **task.parameters(), "source": ""}
    )
    run = make_run(task="ucf101", data=str(path), steps=2)
    with pytest.raises(SkipRNNError, match="features made elsewhere"):
        next(Predictor(run).file(videos / "class0/clip00.avi"))
    assert plot_usage(run, tmp_path / "usage.png").exists()  # their change over time


def test_the_contact_sheet_shows_each_frame_in_its_colour(tmp_path):
    path = write_video(tmp_path / "clip.avi", 30, codec="mjpeg")
    used = [number % 7 == 0 for number in range(30)]
    picture = contact_sheet._sheet(
        Sheet(path, "", used), Sampling(), [np.uint8([0, 0, 255]), np.uint8([255, 0, 0])]
    )  # fmt: skip
    rows, columns = 2, COLUMNS
    cells = picture.reshape(rows, picture.shape[0] // rows, columns, picture.shape[1] // columns, 3)
    corners = cells[:, 0, :, 0].reshape(-1, 3)
    assert [tuple(corner) for corner in corners[:30].tolist()] == [(255, 0, 0) if on else (0, 0, 255) for on in used]
    assert (corners[30:] == 255).all()
    sampling = Sampling()
    figure = contact_sheets([Sheet(path, "a", used), Sheet(path, "b", used)], sampling, "title", USED, SKIPPED)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["a", "b"]


def test_plot_usage_draws_videos(run, skiprnn, tmp_path, videos):
    result = skiprnn("plot-usage", run, "--out", "sheet.png")
    assert result.exit_code == 0, result.output
    picture = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)
    sheets = picture[picture.shape[0] // 4 :]  # below the legend
    for color in (USED, SKIPPED):
        assert (abs(sheets - 255 * np.array(to_rgb(color))).max(2) < 2).sum() > 100
    moved = shutil.copytree(videos, tmp_path / "moved")
    assert skiprnn("plot-usage", run, "--out", "again.png", "--videos", moved).exit_code == 0
    result = skiprnn("plot-usage", run, "--out", "third.png", "--videos", tmp_path / "nowhere")
    assert result.exit_code == 1
    assert "name their folder with --videos" in result.output


def test_extract_again_has_nothing_to_do(features, videos, skiprnn):
    result = skiprnn("extract-features", "videos", videos, "--out", features, *WAY)
    assert result.exit_code == 0, result.output
    assert "8 of 8 videos; nothing was to do" in result.output
    result = skiprnn("extract-features", "videos", videos, "--out", features, *WAY[:-4], "--seconds", "1")
    assert result.exit_code == 1
    assert "was made with seconds 2.0, not 1.0" in result.output


@pytest.mark.usefixtures("forked")
def test_failures_are_named_and_end_with_1_unless_allowed(tmp_path, skiprnn):
    folder = write_folder(tmp_path / "videos", each=3)
    (folder / "class0" / "text.avi").write_text("not a video")
    command = ("extract-features", "videos", folder, "--out", "out.h5", "--workers", 1, *WAY)
    result = skiprnn(*command)
    assert result.exit_code == 1
    assert "failed: class0/text.avi:" in result.output
    assert "1 of 7 videos failed (see out.h5.report.jsonl), so out.h5 is not written now" in result.output
    result = skiprnn(*command, "--allow-failures")
    assert result.exit_code == 0
    assert "wrote out.h5: 6 of 7 videos" in result.output


@pytest.mark.usefixtures("forked")
def test_shards_are_taken_from_who_starts_them(tmp_path, skiprnn, monkeypatch):
    folder = write_folder(tmp_path / "videos", each=3)
    command = ("extract-features", "videos", folder, "--out", "out.h5", "--workers", 1, *WAY)
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    result = skiprnn(*command)
    assert result.exit_code == 0, result.output
    assert "shard 1/2, by SLURM_PROCID and SLURM_STEP_NUM_TASKS" in result.output
    assert "3 are left to other shards" in result.output
    result = skiprnn(*command, "--shard", "0/2")
    assert "wrote out.h5: 6 of 6 videos; now 3 videos" in result.output


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--shard", "2/2"), 2, "is not I/N with I from 0 to N - 1"),
        (("--fps", "0"), 2, "not in the range x>0"),
        (("--weights", "nowhere.pth"), 1, "cannot read nowhere.pth: No such file or directory; name imagenet1k_v1"),
        (("--limit", "2"), 1, "leave none for"),
    ],
)
def test_wrong_options_are_refused(videos, skiprnn, options, code, message):
    result = skiprnn("extract-features", "videos", videos, *WAY, *options)
    assert result.exit_code == code
    assert message in result.output
    assert "Traceback" not in result.output
