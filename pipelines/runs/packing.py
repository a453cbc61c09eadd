"""Runs made into models with a name, in a folder or an archive; and such archives fetched."""

import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.data.doors import check_claim, check_file, file_digest, opening, read_json, reading
from pipelines.data.files import atomic_path, check_writable, write_json
from pipelines.data.memory import bounded, check_fits
from pipelines.errors import SkipRNNError
from pipelines.runs import directory
from pipelines.runs.checkpoints import Checkpoint, Progress, save_checkpoint
from pipelines.runs.config import DATA, TrainConfig, is_own_cell
from pipelines.runs.directory import load_config
from pipelines.runs.evaluation import evaluate_run
from pipelines.runs.load import load_model
from pipelines.runs.named import RECORD, SHIPPED, ModelRecord, Trained, folders, is_model, read_record
from pipelines.sources.download import download
from skiprnn.run_directory import PREFIX, read_checkpoint

ARCHIVES = SHIPPED / "archives.json"  # addresses and SHA-256 of archives, by the names of models that are to be fetched
ZIP = ".zip"
NEEDED = ("config.json", "task.json", RECORD, "checkpoints/best.json")
HEADERS = 2**28  # bytes of memory for what an archive says of its files, whose lengths tarfile believes
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
PART = re.compile(
    r"(?:\./)?(?:\w[\w.-]*/)?((?:config|task|model)\.json|words\.txt|checkpoints/(?:best\.json|\w[\w.-]*\.safetensors))"
)


def pack(
    run: Path, out: Path, command: Callable[[TrainConfig], str], *, data: Path | None = None, overwrite: bool = False
) -> ModelRecord:
    """Make a model of a run's best checkpoint: the network without its optimizer, and how good it is on the test split.

    No path and no name of the machine it was trained on gets into it.

    Args:
        run: the run directory.
        out: the folder of the model, or an archive of it, whose name ends in .zip.
        command: what trains a model of a configuration.
        data: a data file instead of the run's own.
        overwrite: replace ``out`` if it exists.

    Returns:
        The record of the model.

    Raises:
        SkipRNNError: the run or its data cannot be read, it has a cell of one's own, or ``out`` cannot be written.
    """
    archived = out.suffix == ZIP
    if archived:
        check_writable(out, overwrite=overwrite)
    elif out.exists() and not (overwrite and is_model(out) and _is_nothing_else(out)):
        raise SkipRNNError(
            f"{out} exists already; pass --overwrite to replace it, if it is a model and nothing else, or choose "
            "another --out"
        )
    config = load_config(run)
    if is_own_cell(config.cell):
        raise SkipRNNError(
            f"{run} has a cell of one's own, {config.cell}, whose code no model carries; pass on the run"
        )
    with _folder_beside(out) as work:
        model, source = work / "model", data or Path(config.data)
        record = _write_model(run, model, config, source, command)
        if archived:
            _archive(model, out, overwrite=overwrite)
        else:
            _put(model, out, work)
    return record


def fetch(name: str, source: str | None = None, *, sha256: str | None = None, overwrite: bool = False) -> Path:
    """Fetch a model into the user's folder of models, from where its name finds it.

    Args:
        name: the model's name.
        source: an address, or the path, of an archive that ``pack`` made, .zip or .tar; None: where the package says.
        sha256: what the archive must hash to; None: what the package says, which of a file at hand may be nothing.
        overwrite: replace the model of that name that was fetched before.

    Returns:
        The model's run directory.

    Raises:
        SkipRNNError: the name is taken or none, or the archive cannot be had, is another, or holds no model.
    """
    shipped, fetched = folders()
    if not NAME.fullmatch(name):
        raise SkipRNNError(f"{name!r:.60} is no name for a model; use small letters, digits, and . _ - between them")
    if (shipped / name).exists():
        raise SkipRNNError(f"{name} came with skiprnn; fetch another model under a name of its own")
    target = fetched / name
    if target.exists() and not (overwrite and _is_nothing_else(target)):
        raise SkipRNNError(
            f"{target} exists already; pass --overwrite to replace it, if it is a model and nothing else"
        )
    known = read_json(ARCHIVES, dict, "install skiprnn again").get(name, {})
    source, sha256 = source or known.get("url"), known.get("sha256") if sha256 is None else sha256
    if source is None:
        raise SkipRNNError(f"skiprnn knows no address of {name}; name one, or a file, with --from")
    with _folder_beside(target) as work:
        if "://" in source:
            if sha256 is None:
                raise SkipRNNError(f"skiprnn does not know what {source} should hold; give its SHA-256 with --sha256")
            remedy = "Fetch it by other means and name the file with --from"
            archive = download([source], work / "archive", "sha256", sha256.lower(), remedy=remedy)
        else:
            archive, remedy = Path(source), "name another archive with --from"
            with opening(archive, "a readable file", remedy):
                found = file_digest(archive)
            if sha256 is not None and found != sha256.lower():
                raise SkipRNNError(f"{source} is not {name}: its SHA-256 is {found}, not {sha256}; fetch it again")
        model = work / "model"
        _unpack(archive, model, source)
        with reading(source, "a model", "pack it again"):
            data = Path(load_model(model, device="cpu").config.data)
            read_record(model)
        if data.parent != DATA:  # which is generated there if it is missing
            raise SkipRNNError(f"{source} names the data file {str(data)!r:.80}, outside of {DATA}/; pack it again")
        _put(model, target, work)
    return target


def _write_model(
    run: Path, model: Path, config: TrainConfig, data: Path, command: Callable[[TrainConfig], str]
) -> ModelRecord:
    best = run / "checkpoints" / "best.json"
    with reading(best, "a checkpoint", "train the run again"):
        numbers, tensors = read_checkpoint(best)
    task, step, seconds = numbers.get("task") or directory.load_task(run), numbers["step"], numbers["seconds"]
    config = replace(config, data=str(DATA / Path(config.data).name), device="auto")
    directory.create_run(model, config)
    directory.record_task(model, task)
    if (run / "words.txt").exists():
        directory.record_words(model, directory.load_words(run))
    progress = Progress(step, seconds, numbers["best_objective"], step, config=asdict(config), task=task)
    progress.data_digest = numbers["data_digest"]
    named = {PREFIX + name: tensor for name, tensor in tensors.items()}
    save_checkpoint(model, ("best",), Checkpoint(named, progress))
    e = evaluate_run(model, data=data)
    if is_model(run):
        trained = read_record(run).trained
    else:
        began = _first_session(run)
        trained = Trained(command(config), began.get("date"), step, seconds, began.get("skiprnn"), began.get("torch"))
    record = ModelRecord(
        e.task, e.model, e.metric_name, e.metric, e.used_mean, e.steps_per_sequence, e.sequences, trained
    )
    write_json(model / RECORD, asdict(record))
    return record


def _first_session(run: Path) -> dict[str, Any]:
    path = run / "environment.json"
    sessions = read_json(path, list, "restore it, or remove it", limit=directory.JSON_BYTES) if path.exists() else []
    return sessions[0] if sessions else {}


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """A temporary folder in the folder of ``path``, which is made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", ignore_cleanup_errors=True) as work:
            yield Path(work)
    except OSError as error:
        raise SkipRNNError(
            f"cannot write {path}: {error.strerror or error}; check permissions and free space"
        ) from error


def _put(model: Path, target: Path, work: Path) -> None:
    """Give a finished model its name, in the place of one that has it."""
    old = work / "old"
    try:
        if target.exists():
            target.rename(old)
        model.rename(target)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)


def _is_nothing_else(folder: Path) -> bool:
    """Whether a folder holds no file but a model's."""
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()]
    return folder.is_dir() and all((part := PART.fullmatch(file)) and part[1] == file for file in files)


def _archive(model: Path, out: Path, *, overwrite: bool) -> None:
    """The same files make the same bytes."""
    with atomic_path(out, overwrite=overwrite) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for path in sorted(path for path in model.rglob("*") if path.is_file()):
            name = path.relative_to(model).as_posix()
            archive.writestr(zipfile.ZipInfo(name), path.read_bytes(), zipfile.ZIP_DEFLATED)


def _unpack(archive: Path, model: Path, name: str) -> None:
    """Write the files of a model, and refuse an archive with any other."""
    remedy = "pack it again with `skiprnn models pack`"
    stored, claimed = check_file(archive, remedy), 0
    with bounded(HEADERS), reading(name, "a .zip or .tar archive", remedy):
        (model / "checkpoints").mkdir(parents=True)
        with closing(_members(archive)) as members:
            for member, size, opened in members:
                part = PART.fullmatch(member)
                if part is None or opened is None or (model / part[1]).exists():
                    raise SkipRNNError(f"{name} holds {member!r:.80}, which is no part of a model; {remedy}")
                claimed += size
                check_claim(claimed, stored, name)
                check_fits(claimed, name)
                with opened() as file, open(model / part[1], "wb") as target:
                    shutil.copyfileobj(file, target)
    if missing := [part for part in NEEDED if not (model / part).exists()]:
        raise SkipRNNError(f"{name} is no model: it has no {missing[0]}; {remedy}")


def _members(path: Path) -> Generator[tuple[str, int, Callable[[], Any] | None]]:
    """Names and sizes of what is in an archive, folders left out, and what opens it, unless it is no file."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not entry.is_dir():
                    yield entry.filename, entry.file_size, partial(archive.open, entry)
        return
    with tarfile.open(path) as tar:
        for member in tar:
            if not member.isdir():
                yield member.name, member.size, partial(tar.extractfile, member) if member.isfile() else None
