"""MNIST and IMDB from a data file to figure and prediction, on small files of their shape."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageDraw, ImageOps

from pipelines.data import images
from pipelines.data.images import image_source
from pipelines.data.sequences import SPLITS, Sequences, read_sequences, sequences_writer
from pipelines.errors import SkipRNNError
from pipelines.runs.config import configure
from pipelines.runs.directory import create_run, load_words
from pipelines.runs.evaluation import evaluate_run
from pipelines.runs.export import export_run
from pipelines.runs.figures import plot_usage
from pipelines.runs.load import load_run
from pipelines.runs.onnx_step import ABOUT, OnnxStep
from pipelines.runs.prediction import Predictor
from pipelines.runs.traced import description
from pipelines.runs.training import train
from pipelines.tasks import Imdb, Mnist
from skiprnn.cells import LSTMCell
from skiprnn.words import digest_of_words
from skiprnn_cli.main import cli

WORDS = ["", "", "film", "good", "bad", "isn't"]
SMALL = {"hidden_size": 6, "batch_size": 8, "steps": 4, "eval_every": 2, "device": "cpu", "lam": 1e-4}


def written(path, task, sequences, extra=None):
    with sequences_writer(path, overwrite=False) as writer:
        for split in SPLITS:
            writer.write_split(split, len(sequences), iter([sequences]))
        for name, array in (extra or {}).items():
            writer.write_extra(name, array)
        writer.finish({"task": task.name, **task.parameters()})
    return path


@pytest.fixture(scope="module")
def mnist_file(tmp_path_factory):
    draws = torch.Generator().manual_seed(0)
    x = torch.randint(256, (12, 784, 1), generator=draws).to(torch.uint8)
    return written(tmp_path_factory.mktemp("m") / "mnist.h5", Mnist("17"), Sequences(x, torch.arange(12) % 2))


@pytest.fixture(scope="module")
def imdb_file(tmp_path_factory):
    draws = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 13, (12,), generator=draws)
    x = torch.randint(1, 6, (12, 12), generator=draws).where(torch.arange(12) < lengths[:, None], 0).int()
    vectors = torch.rand(6, 5, generator=draws).sub(0.5).numpy()
    vectors[0] = 0
    task = Imdb(length=12, dimensions=5, vocabulary=6, vocabulary_sha256=digest_of_words(WORDS))
    path = tmp_path_factory.mktemp("i") / "imdb.h5"
    return written(path, task, Sequences(x, torch.arange(12) % 2, lengths), {
        "words": np.array(WORDS, dtype=object), "vectors": vectors,
    })  # fmt: skip


@pytest.fixture
def make(tmp_path):
    def make(task, data, **options):
        run = create_run(tmp_path / f"{task}-run", configure(task, "quick", data=str(data), **{**SMALL, **options}))
        train(run)
        return run

    return make


def test_mnist(make, mnist_file, tmp_path):
    run = make("mnist", mnist_file)
    report = evaluate_run(run)
    assert (report.metric_name, report.steps_per_sequence, report.sequences) == ("accuracy", 784, 12)
    assert report.cost_without_skipping == 784 * 4 * 6 * 7
    trained = load_run(run)
    with torch.no_grad():
        output, gate = trained.model(trained.sequences.x)
        scaled = trained.model.rnn(trained.sequences.x.float() / 255).update_gate
    assert torch.equal(gate, scaled)

    predictions = list(Predictor(run).file(mnist_file))
    said = torch.tensor([p.answer["probabilities"] for p in predictions])
    torch.testing.assert_close(said, output.softmax(1), rtol=0, atol=1e-5)
    assert {p.answer["class"] for p in predictions} <= {"1", "7"}
    assert [p.used for p in predictions] == gate.sum(1).tolist()
    pixels = trained.sequences.x[3].reshape(28, 28).numpy()
    pixels[[0, -1]] = pixels[:, [0, -1]] = 0
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    Image.fromarray(255 - pixels).save(tmp_path / "inverted.png")
    (image,) = Predictor(run).file(tmp_path / "digit.png")
    (inverted,) = Predictor(run).file(tmp_path / "inverted.png")
    assert image.answer == inverted.answer
    with torch.no_grad():
        expected = trained.model(torch.from_numpy(pixels).reshape(1, 784, 1)).output.softmax(1)[0]
    assert image.answer["probabilities"] == pytest.approx(expected.tolist(), abs=1e-5)
    plot_usage(run, tmp_path / "usage.png", examples=7)
    assert (tmp_path / "usage.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SkipRNNError, match=r"only words make an \.html page"):
        plot_usage(run, tmp_path / "usage.html")


def pixels_of(image, path, **options):
    """What MNIST's networks read of an image."""
    image.save(path, **options)
    source = image_source(path, 28)
    assert source.read(784) is None
    return np.array([source.read(t)[0] for t in range(784)]).reshape(28, 28)


def seven(size, pen, place=(0.0, 0.0)):
    """A dark seven on white."""
    image = Image.new("L", size, "white")
    corners = [((x + place[0]) * size[1], (y + place[1]) * size[1]) for x, y in ((0.2, 0.2), (0.6, 0.2), (0.35, 0.8))]
    ImageDraw.Draw(image).line(corners, fill="black", width=pen, joint="curve")
    return image


def with_alpha(image, color):
    drawn = Image.new("RGBA", image.size, color)
    drawn.putalpha(ImageOps.invert(image))
    return drawn


DRAWN = seven((400, 300), 24)
IN_OTHER_WAYS = {
    "light on dark": ImageOps.invert(DRAWN),
    "colours": ImageOps.colorize(DRAWN, (20, 40, 160), (250, 230, 120)),
    "faint": DRAWN.point(lambda value: 150 + value // 4),
    "black on transparent": with_alpha(DRAWN, "black"),
    "white on transparent": with_alpha(DRAWN, "white"),
    "16 bits": Image.fromarray(np.asarray(DRAWN).astype(np.uint16) * 257),
    "floats": Image.fromarray(np.asarray(DRAWN).astype(np.float32) / 255),
    "a bit": DRAWN.convert("1"),
    "palette": DRAWN.convert("P"),
    "CMYK": DRAWN.convert("CMYK"),
    "elsewhere": seven((400, 300), 24, (0.6, 0.05)),
    "large": seven((1600, 1200), 96),
    "small": DRAWN.resize((80, 60), Image.Resampling.BOX),
}


@pytest.mark.parametrize("scaled", [False, True], ids=["whole", "scaled down"])
@pytest.mark.parametrize("how", IN_OTHER_WAYS)
def test_a_digit_is_read_alike_however_it_is_drawn(how, scaled, tmp_path, monkeypatch):
    usual = pixels_of(DRAWN, tmp_path / "digit.tif")
    if scaled:
        monkeypatch.setattr(images, "ENOUGH", 150)
        assert max(images._scaled_down(IN_OTHER_WAYS[how]).size) <= 150
    other = pixels_of(IN_OTHER_WAYS[how], tmp_path / "digit.tif")
    shifts = [-1, 0, 1] if scaled or how in ("large", "small") else [0]  # where whole pixels are rounded otherwise
    moved = [np.roll(other, (down, right), (0, 1)).ravel() for down in shifts for right in shifts]
    assert max(np.corrcoef(usual.ravel(), pixels)[0, 1] for pixels in moved) > 0.95


def test_images_are_prepared_as_those_of_mnist(tmp_path):
    pixels = pixels_of(DRAWN, tmp_path / "digit.jpg", quality=60)
    rows, columns = (np.flatnonzero(pixels.max(axis=axis) > 40) for axis in (1, 0))
    assert rows[-1] - rows[0] + 1 == 20  # the longer side
    assert columns[-1] - columns[0] + 1 < 20
    assert (pixels.max(), pixels[0].max()) == (255, 0)
    centre = [np.average(np.arange(28), weights=pixels.sum(axis=axis)) for axis in (1, 0)]
    assert centre == pytest.approx([14, 14], abs=0.6)
    pencil = pixels_of(seven((1600, 1200), 2), tmp_path / "pencil.png")
    assert 0.15 < pencil.sum() / pixels.sum() < 1  # no thinner than a pen on paper


def test_images_of_28_pixels_are_taken_as_they_are(tmp_path):
    image = ImageOps.invert(DRAWN.resize((28, 28))).point(lambda value: value // 2)
    assert (pixels_of(image, tmp_path / "digit.png") == np.asarray(image)).all()
    assert (pixels_of(ImageOps.invert(image), tmp_path / "digit.png") == np.asarray(image)).all()


def test_what_shows_no_digit(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    Image.new("RGB", (90, 60), "white").save(tmp_path / "blank.png")
    for name, said in (
        ("text.png", "cannot read .*text.png: truncated, damaged or not an image"),
        ("missing.png", "cannot read .*missing.png: No such file"),
        ("blank.png", "blank.png shows no digit: all of it has nearly one colour; name another file"),
    ):
        with pytest.raises(SkipRNNError, match=said):
            image_source(tmp_path / name, 28)


@pytest.mark.parametrize("true_lengths", [False, True], ids=["padded", "true_lengths"])
def test_imdb(make, imdb_file, tmp_path, true_lengths):
    run = make("imdb", imdb_file, true_lengths=true_lengths)
    assert load_words(run) == WORDS
    trained = load_run(run)
    sequences = trained.sequences
    report = evaluate_run(run)
    assert (sequences.lengths is not None) == true_lengths
    assert report.steps_per_sequence == (sequences.lengths.double().mean() if true_lengths else 12)
    assert trained.model.embedding.weight[0].abs().sum() == 0  # padding stays zero
    with torch.no_grad():
        output, gate = trained.model(sequences.x, sequences.lengths)
    assert not (gate[:, :1] == 0).any()

    predictor = Predictor(run)
    predictions = list(predictor.file(imdb_file))
    said = torch.tensor([p.answer["probabilities"] for p in predictions])
    torch.testing.assert_close(said, output.softmax(1), rtol=0, atol=1e-5)
    lengths = sequences.lengths.tolist() if true_lengths else [12] * 12
    assert [(p.used, p.given) for p in predictions] == list(zip(gate.sum(1).tolist(), lengths, strict=True))
    words = ["good", "film", "isn't", "unheard"]
    (tmp_path / "review.txt").write_text("GOOD film, isn’t<br/>unheard!")
    (prediction,) = predictor.file(tmp_path / "review.txt")
    assert prediction.answer["class"] in ("negative", "positive")
    assert prediction.given == (4 if true_lengths else 12)
    numbers = [WORDS.index(word) if word in WORDS else 1 for word in words]
    x = torch.tensor([numbers if true_lengths else [0] * 8 + numbers], dtype=torch.int32)
    with torch.no_grad():
        expected = trained.model(x).output.softmax(1)[0]
    assert prediction.answer["probabilities"] == pytest.approx(expected.tolist(), abs=1e-5)
    assert predictor.text("good film isn't unheard", "text").answer == prediction.answer
    with pytest.raises(SkipRNNError, match="text holds no words"):
        predictor.text(" ... ", "text")

    plot_usage(run, tmp_path / "usage.png", examples=4)
    assert (tmp_path / "usage.png").read_bytes().startswith(b"\x89PNG")
    page = plot_usage(run, tmp_path / "usage.html", examples=12).read_text()
    assert page.count("<h2>") == 12
    shown = int((sequences.x != 0).sum())
    assert page.count('<span class="u">') + page.count('<span class="s">') == shown + 2
    used = int((gate.bool() & (sequences.x != 0)).sum())
    assert page.count('<span class="u">') == used + 1


def test_text_on_standard_input(make, imdb_file):
    run = make("imdb", imdb_file)
    done = CliRunner().invoke(cli, ["predict", str(run), "-"], input="a good film\n")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("standard input: class ")


def test_embedding_starts_with_the_files_vectors(imdb_file, make):
    run = make("imdb", imdb_file, steps=1, lr=1e-12)
    trained = load_run(run, checkpoint="last")
    assert isinstance(trained.model.rnn.cell, LSTMCell)
    vectors = torch.from_numpy(read_sequences(imdb_file).extra["vectors"])
    torch.testing.assert_close(trained.model.embedding.weight.detach(), vectors)


def test_data_that_means_something_else_is_refused(make, mnist_file, imdb_file, tmp_path):
    run = make("mnist", mnist_file)
    x = torch.zeros(12, 784, 1, dtype=torch.uint8)
    turned = written(tmp_path / "turned.h5", Mnist("71"), Sequences(x, torch.arange(12) % 2))
    with pytest.raises(SkipRNNError, match=r"turned.h5 has digits 71, the run was trained on 17"):
        evaluate_run(run, data=turned)
    with pytest.raises(SkipRNNError, match=r"turned.h5 has digits 71"):
        list(Predictor(run).file(turned))
    review = make("imdb", imdb_file)
    other = Imdb(length=12, dimensions=5, vocabulary=6, vocabulary_sha256="another")
    ids = torch.ones(12, 12, dtype=torch.int32)
    renamed = written(tmp_path / "renamed.h5", other, Sequences(ids, torch.arange(12) % 2))
    with pytest.raises(SkipRNNError, match="has vocabulary_sha256 another"):
        evaluate_run(review, data=renamed)


def test_data_made_anew_is_noticed(make, tmp_path):
    x = torch.zeros(12, 784, 1, dtype=torch.uint8)
    path = written(tmp_path / "m.h5", Mnist("17"), Sequences(x, torch.arange(12) % 2))
    run = make("mnist", path)
    evaluate_run(run)
    path.unlink()
    written(path, Mnist("17"), Sequences(x + 1, torch.arange(12) % 2))
    with pytest.raises(
        SkipRNNError, match=r"m.h5 was made anew since .* was trained on it; to use it even so, pass --data"
    ):
        evaluate_run(run)
    assert evaluate_run(run, data=path).sequences == 12


@pytest.mark.filterwarnings("default")  # torch's and onnxscript's own
def test_an_exported_run_on_words_takes_their_numbers(make, imdb_file, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run = make("imdb", imdb_file)
    report = export_run(run, tmp_path / "model.onnx")
    assert report.gates_equal == report.gates
    assert report.output_difference < 1e-5
    assert report.about["x"] == "numbers of words, their places in the list words"
    assert "words" not in report.about  # there are very many
    about = json.loads(OnnxStep(tmp_path / "model.onnx").session.get_modelmeta().custom_metadata_map[ABOUT])
    assert about == {**report.about, "words": WORDS}
    assert report.about["parameters"]["length"] == 12
    assert report.about["names"] == ["negative", "positive"]
    (run / "words.txt").write_text("other\n")
    with pytest.raises(SkipRNNError, match=r"words.txt was edited since the run was trained"):
        export_run(run, tmp_path / "other.onnx")


def test_an_exported_run_on_pixels_takes_bytes(make, mnist_file):
    run = make("mnist", mnist_file)
    trained = load_run(run)
    about = description(run, trained, "raw")
    assert about["x"] == "samples as they are in the data, standardised inside"
    x = trained.sequences.x[:1]
    scaled = (x.float() - torch.tensor(about["mean"])) / torch.tensor(about["std"])
    assert torch.equal(scaled, trained.model.embedding(x))
