"""Models with a name: those that ship, what commands make of a name, packing and fetching."""

import gzip
import io
import json
import re
import shlex
import tarfile
import zipfile
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors import safe_open

import skiprnn as library
from pipelines.data.doors import file_digest
from pipelines.errors import SkipRNNError
from pipelines.runs import named
from pipelines.runs.config import configure
from pipelines.runs.directory import create_run
from pipelines.runs.training import train
from pipelines.sources.synthetic import generate
from pipelines.tasks import Adding, Sine
from skiprnn import models
from skiprnn_cli.gen_data import ensure_data
from skiprnn_cli.models import _command_of
from skiprnn_cli.train import command as training

SIZES = {"train": 64, "val": 16, "test": 16}
SHIPPED = sorted(config.parent.name for config in named.SHIPPED.glob("*/config.json"))
MADE_HERE = re.compile(r"/(work|home|root|tmp|mnt|data|Users)/")
SMALL = {"hidden_size": 6, "batch_size": 32, "steps": 4, "eval_every": 2, "device": "cpu", "lam": 1e-3, "seed": 3}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on what ``skiprnn gen-data adding`` makes, smaller."""
    folder = tmp_path_factory.mktemp("trained")
    data = generate(Adding(), folder / "adding.h5", SIZES, seed=0)
    run = create_run(folder / "run", configure("adding", "quick", data=str(data), **SMALL))
    train(run)
    return run


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """Where fetched models lie."""
    monkeypatch.setenv("SKIPRNN_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def tiny(skiprnn, run, fetched, monkeypatch):
    """The run as the model tiny-lstm."""
    monkeypatch.setattr("skiprnn_cli.gen_data.DEFAULT_SIZES", SIZES)
    done = skiprnn("models", "pack", run, "--out", fetched / "tiny-lstm")
    assert (done.exit_code, done.stderr) == (0, "")
    return fetched / "tiny-lstm"


def contents(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_where_models_lie_is_the_same_with_and_without_torch(fetched):
    assert named.folders() == models.folders() == (named.SHIPPED, fetched)


@pytest.mark.parametrize("name", SHIPPED)
def test_models_that_ship(name):
    folder = named.SHIPPED / name
    model, record = library.load(name), named.read_record(folder)
    for path in folder.rglob("*.json"):
        assert not MADE_HERE.search(path.read_text(encoding="utf-8")), path
    (tensors,) = folder.glob("checkpoints/*.safetensors")
    with safe_open(tensors, "pt") as file:
        assert {key.partition(".")[0] for key in file.keys()} == {"model"}  # noqa: SIM118
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 2**20
    assert model.task == record.task
    assert record.trained.command.startswith(f"skiprnn train --task {record.task} ")
    kinds = {"adding": Adding, "sine": Sine}
    if record.task in kinds:
        task = kinds[record.task]()
        batch = task.sample(300, torch.Generator().manual_seed(0))
        used = [float(said.used.sum()) for said in model.predict(batch.x)]
        assert sum(used) / len(used) == pytest.approx(record.used_samples, rel=0.1)


def test_models_are_listed(skiprnn, tiny):
    header, *rows = skiprnn("models").stdout.splitlines()
    assert header.split() == ["name", "task", "model", "metric", "used", "size", "fetched"]
    assert [row.split()[0] for row in rows] == sorted([*SHIPPED, "tiny-lstm"])
    row = next(row for row in rows if row.startswith("tiny-lstm"))
    assert re.fullmatch(r"tiny-lstm +adding +Skip LSTM +MSE \S+ +\S+ of 50 +\S+ KB +fetched", row)
    said = {model["name"]: model for model in map(json.loads, skiprnn("models", "--json").stdout.splitlines())}
    assert (said["tiny-lstm"]["metric_name"], said["tiny-lstm"]["fetched"]) == ("MSE", True)
    assert said["tiny-lstm"]["trained"]["command"] == (
        "skiprnn train --task adding --preset quick --cell lstm --lam 0.001 --hidden 6 --batch-size 32 --steps 4 "
        "--eval-every 2 --seed 3"
    )


def test_a_name_is_taken_for_a_run_and_nothing_is_written_into_it(skiprnn, tiny, monkeypatch):
    before = contents(tiny)
    for path in (tiny, *tiny.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    done = skiprnn("evaluate", "tiny-lstm", "--json")
    assert (done.exit_code, json.loads(done.stdout.splitlines()[-1])["sequences"]) == (0, 16)
    assert "no data file data/adding.h5 yet: generating it, as `skiprnn gen-data adding` does" in done.stderr
    record = named.read_record(tiny)
    assert json.loads(done.stdout.splitlines()[-1])["metric"] == pytest.approx(record.metric)
    assert skiprnn("plot-usage", "tiny-lstm").stdout == "wrote tiny-lstm-usage.png\n"
    assert skiprnn("plot-usage", "tiny-lstm").stderr.startswith("Error: tiny-lstm-usage.png exists already")
    monkeypatch.setattr("pipelines.runs.export.export_run", exported := Mock(side_effect=SkipRNNError("far enough")))
    noted = "writing tiny-lstm-model.onnx and checking it on the test split\n"
    assert skiprnn("export", "tiny-lstm").stderr == f"{noted}Error: far enough\n"
    assert exported.call_args.args == (tiny, Path("tiny-lstm-model.onnx"))
    said = skiprnn("predict", "tiny-lstm", "data/adding.h5", "--index", "3")
    assert said.stdout.startswith("data/adding.h5:test/x[3]: sum ")
    assert contents(tiny) == before


def test_a_run_directory_comes_before_a_model_of_its_name(skiprnn, make_run, tmp_path):
    make_run("adding-lstm")
    assert json.loads(skiprnn("evaluate", "adding-lstm", "--json").stdout)["step"] == 8
    assert library.load("adding-lstm").step == 8
    (tmp_path / "adding-lstm").rename(tmp_path / "other")
    (tmp_path / "adding-lstm").mkdir()  # a folder of figures, say
    assert library.load("adding-lstm").step > 8


def test_what_a_model_is_not_for(skiprnn, tiny):
    done = skiprnn("train", "--resume", "tiny-lstm", "--steps", "9")
    said = "Error: tiny-lstm is a model that is ready, with nothing to resume; train one like it with `skiprnn train "
    assert (done.exit_code, done.stderr.startswith(said)) == (1, True)
    done = skiprnn("predict", "tiny-lstm", "x.csv", "--checkpoint", "last")
    said = "Error: tiny-lstm is a model that is ready, with the checkpoint 'best' alone; ask for that\n"
    assert (done.exit_code, done.stderr) == (1, said)


def test_a_cell_of_ones_own_is_not_packed(skiprnn, make_run):
    done = skiprnn("models", "pack", make_run(trained=False, cell="a.b:Cell"), "--out", "model")
    assert "has a cell of one's own, a.b:Cell, whose code no model carries; pass on the run" in done.stderr


def test_names_that_there_are_not(skiprnn, fetched):
    listed = ", ".join(SHIPPED)
    said = f"adding-lsmt is not a run directory, nor one of the models {listed} (did you mean 'adding-lstm'?); "
    done = skiprnn("predict", "adding-lsmt", "x.csv")
    assert (done.exit_code, done.stderr) == (1, f"Error: {said}`skiprnn train` makes a run\n")
    with pytest.raises(FileNotFoundError, match=re.escape(said)):
        library.load("adding-lsmt")


def test_what_the_command_of_a_model_says():
    for options in ({"data": "data/a,b.h5"}, {"feature_cost": "1=5,0=0.5", "lam": 1e-3}, {"gate_clip": "none"}):
        config = configure("adding", "quick", **{"data": "data/adding.h5", **options})
        words = shlex.split(_command_of(config))[2:]
        given = training.make_context("train", words).params
        asked = {name: given[name] for name in vars(config) if given.get(name) is not None}
        assert configure(**{**asked, "data": str(given["data"] or config.data)}) == config


def test_a_model_packed_once_more_says_how_it_was_trained(skiprnn, tiny):
    assert skiprnn("models", "pack", "tiny-lstm", "--out", "again").exit_code == 0
    assert named.read_record(Path("again")) == named.read_record(tiny)
    assert named.read_record(tiny).trained.date is not None


def test_what_is_more_than_a_model_is_not_replaced(skiprnn, tiny, run, tmp_path):
    skiprnn("models", "pack", run, "--out", "tiny.zip")
    arguments = ("pack", run, "--out", tiny), ("fetch", "tiny-lstm", "--from", "tiny.zip")
    assert [skiprnn("models", *words, "--overwrite").exit_code for words in arguments] == [0, 0]
    (tiny / "thesis.txt").write_text("years of work")
    for words in arguments:
        done = skiprnn("models", *words, "--overwrite")
        assert (done.exit_code, "if it is a model and nothing else" in done.stderr) == (1, True)
    assert (tiny / "thesis.txt").exists()


def test_data_of_other_parameters_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("skiprnn_cli.gen_data.DEFAULT_SIZES", SIZES)
    ensure_data(tmp_path / "sine.h5", Sine(sampling_period=0.5))
    assert ": generating it, as `skiprnn gen-data sine --sampling-period 0.5` does\n" in capsys.readouterr().err


def test_data_that_is_not_generated(skiprnn, tiny):
    for name, digits in (("config.json", None), ("task.json", "17")):
        content = json.loads((tiny / name).read_text())
        content |= {"task": "mnist"} | ({"digits": digits} if digits else {"data": "data/mnist-17.h5"})
        (tiny / name).write_text(json.dumps(content))
    done = skiprnn("plot-usage", "tiny-lstm")
    assert done.stderr == (
        "Error: no data file data/mnist-17.h5, on which tiny-lstm is tried; make it with `skiprnn gen-data mnist "
        "--digits 17`, or name one with --data\n"
    )


def test_packed_and_fetched(skiprnn, run, fetched, tmp_path):
    done = skiprnn("models", "pack", run, "--out", "tiny.zip")
    digest = file_digest(tmp_path / "tiny.zip")
    said = r"wrote tiny.zip: Skip LSTM on adding, MSE \S+, \S+ of 50 samples used on 16 test sequences\n"
    assert re.fullmatch(f"{said}sha256 {digest}\n", done.stdout)
    assert skiprnn("models", "pack", run, "--out", "tiny.zip").stderr.startswith("Error: tiny.zip exists already; pass")
    assert skiprnn("models", "fetch", "a", "--from", "tiny.zip").stdout == f"fetched a into {fetched / 'a'}\n"
    url = (tmp_path / "tiny.zip").as_uri()
    assert skiprnn("models", "fetch", "b", "--from", url, "--sha256", digest.upper()).exit_code == 0
    with tarfile.open("tiny.tar.gz", "w:gz") as archive:
        archive.add(fetched / "a", "tiny")
    assert skiprnn("models", "fetch", "c", "--from", "tiny.tar.gz").exit_code == 0
    assert {path.name for path in fetched.iterdir()} == {"a", "b", "c"}
    for name in "abc":
        assert library.load(name).step == 4

    def refused(*arguments):
        done = skiprnn("models", "fetch", *arguments)
        assert done.exit_code == 1
        return done.stderr

    assert f"{fetched / 'a'} exists already; pass --overwrite" in refused("a", "--from", "tiny.zip")
    assert skiprnn("models", "fetch", "a", "--from", "tiny.zip", "--overwrite").exit_code == 0
    assert "give its SHA-256 with --sha256" in refused("d", "--from", url)
    assert f"its sha256 is {digest}, not 00" in refused("d", "--from", url, "--sha256", "00")
    assert f"its SHA-256 is {digest}, not 00" in refused("d", "--from", "tiny.zip", "--sha256", "00")
    assert f"its SHA-256 is {digest}, not ;" in refused("d", "--from", "tiny.zip", "--sha256", "")
    config = fetched / "a" / "config.json"
    config.write_text(config.read_text().replace("data/adding.h5", "/etc/adding.h5"))
    with tarfile.open("elsewhere.tar", "w") as archive:
        archive.add(fetched / "a", "tiny")
    said = "elsewhere.tar names the data file '/etc/adding.h5', outside of data/; pack it again"
    assert said in refused("d", "--from", "elsewhere.tar")
    assert "adding-lstm came with skiprnn" in refused("adding-lstm", "--from", "tiny.zip")
    assert "'../d' is no name for a model" in refused("../d", "--from", "tiny.zip")
    assert "skiprnn knows no address of d; name one, or a file, with --from" in refused("d")
    assert {path.name for path in fetched.iterdir()} == {"a", "b", "c"}


def test_addresses_that_the_package_knows(skiprnn, run, fetched, tmp_path, monkeypatch):
    skiprnn("models", "pack", run, "--out", "tiny.zip")
    known = {"large": {"url": (tmp_path / "tiny.zip").as_uri(), "sha256": file_digest(tmp_path / "tiny.zip")}}
    (tmp_path / "archives.json").write_text(json.dumps(known))
    monkeypatch.setattr("pipelines.runs.packing.ARCHIVES", tmp_path / "archives.json")
    assert skiprnn("models", "fetch", "large").exit_code == 0
    assert library.load("large").step == 4


def zipped(**members):
    with zipfile.ZipFile("bad.zip", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def linked():
    with tarfile.open("bad.zip", "w") as archive:
        link = tarfile.TarInfo("words.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)


def twice():
    with tarfile.open("bad.zip", "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("words.txt"), io.BytesIO())


def long_header():
    """A few KB that tarfile would take a GB for."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 2**30
    with gzip.open("bad.zip", "wb", 1) as file:
        file.write(header.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(2**30 // 2**24):
            file.write(bytes(2**24))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (long_header, "there is not enough memory to read bad.zip"),
        (lambda: zipped(**{"../config.json": "{}"}), "holds '../config.json', which is no part of a model"),
        (lambda: zipped(**{"/tmp/config.json": "{}"}), "holds '/tmp/config.json', which is no part of a model"),
        (lambda: zipped(**{"a/../../config.json": "{}"}), "holds 'a/../../config.json', which is no part"),
        (lambda: zipped(**{"run.py": ""}), "holds 'run.py', which is no part of a model"),
        (linked, "holds 'words.txt', which is no part of a model"),
        (twice, "holds 'words.txt', which is no part of a model"),
        (lambda: zipped(**{"words.txt": ""}), "bad.zip is no model: it has no config.json; pack it again"),
        (lambda: Path("bad.zip").write_text("no archive"), "truncated, damaged or not a .zip or .tar archive"),
    ],
)
def test_archives_of_something_else(skiprnn, fetched, tmp_path, make, said):
    make()
    done = skiprnn("models", "fetch", "bad", "--from", "bad.zip")
    assert (done.exit_code, said in done.stderr) == (1, True), done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("bad.zip", "models")] == []
    assert list(fetched.iterdir()) == []
