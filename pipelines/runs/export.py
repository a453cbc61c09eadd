"""``export``: a run's network for ONNX Runtime or torch, checked against the model on a split of its data."""

import io
import json
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from pipelines.data.files import atomic_path, check_writable
from pipelines.data.sequences import Split
from pipelines.errors import SkipRNNError
from pipelines.runs.config import is_own_cell
from pipelines.runs.load import TrainedModel, load_run
from pipelines.runs.model import with_gate
from pipelines.runs.onnx_step import OnnxStep, no_log, write_onnx
from pipelines.runs.traced import InputForm, description, trace_sequences, trace_step
from pipelines.tasks import Task
from pipelines.tasks.measures import is_step
from skiprnn.networks import SequenceModel

Format = Literal["onnx", "torch"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2"}
ABOUT_FILE = "skiprnn.json"  # inside of a .pt2 file
CHECK_BATCH = 256  # sequences a call
Replay = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""What a file makes of x and lengths: the output, and the gate, (B, T) of bool."""
T = TypeVar("T")


@dataclass(frozen=True)
class Export:
    """What was written, and how it compares with the model it was made from."""

    out: str
    bytes: int
    format: Format
    int8: bool
    about: dict[str, Any]  # what the file says of itself, but for the words
    sequences: int  # compared, all their steps
    gates: int
    gates_equal: int
    output_difference: float  # largest, between last outputs, or those of all steps where each has an answer
    metric_name: str
    metric: float
    metric_exported: float
    used_mean: float
    used_mean_exported: float


def export_run(
    run: Path,
    out: Path,
    *,
    format: Format = "onnx",
    input: InputForm = "raw",
    int8: bool = False,
    split: str = "test",
    checkpoint: str = "best",
    data: Path | None = None,
    overwrite: bool = False,
) -> Export:
    """Write a run's network for others to run, read the file again, and run it on a split beside the model itself.

    Args:
        run: the run directory.
        out: a path ending in .onnx or .pt2, as the format has it.
        format: "onnx", one step with its state laid open, which ONNX Runtime replays; "torch", whole sequences of any
            length for ``torch.export.load``, which wants ``import skiprnn`` before.
        input: what x is: "raw", samples as ``predict`` takes them, or "network", as the recurrent network reads them.
        int8: of ONNX, quantise the weights of matrix products and word vectors to 8 bits, activations on the fly.
        split, checkpoint, data: as for ``load.load_run``.
        overwrite: replace ``out`` if it exists.

    Returns:
        What was written, and how it compares with the run itself.

    Raises:
        SkipRNNError: the extra ``export`` is missing, the run cannot be read, its cell cannot be traced, or ``out``
            cannot be written.
    """
    for package in ("onnx", "onnxruntime", "onnxscript") if format == "onnx" else ():
        try:
            import_module(package)
        except ImportError as error:
            raise SkipRNNError(
                f"export needs the package {package} ({error}); install the extra with `pip install 'skiprnn[export]'`"
            ) from error
    if Path(out).suffix != SUFFIXES[format]:
        raise SkipRNNError(f"cannot export to {out}: its name must end in {SUFFIXES[format]}")
    check_writable(out, overwrite=overwrite)
    trained = load_run(run, split=split, checkpoint=checkpoint, data=data, device="cpu")
    about, model = description(run, trained, input), with_gate(trained.model)
    with atomic_path(out, overwrite=overwrite) as temporary:
        replay: Replay
        if format == "onnx":
            write_onnx(_traced(trace_step, trained, input), temporary, about, int8=int8)
            replay = OnnxStep(temporary, every_step=model.each_step)
        else:
            program = _traced(trace_sequences, trained, input)
            archive = io.BytesIO()  # given a path, torch puts its name, which is the temporary one, inside
            torch.export.save(program, archive, extra_files={ABOUT_FILE: json.dumps(about)})
            temporary.write_bytes(archive.getvalue())
            replay = _loaded(temporary)
        size = temporary.stat().st_size
        result = _compare(replay, model, trained.task, trained.sequences, input)
    about.pop("words", None)
    return Export(out=str(out), bytes=size, format=format, int8=int8, about=about, **result)


def _traced(trace: Callable[[SequenceModel, Task, InputForm], T], trained: TrainedModel, input: InputForm) -> T:
    """What ``trace`` makes of a model; what torch says of a cell of one's own becomes one message."""
    try:
        with no_log(), redirect_stderr(io.StringIO()):  # where torch prints a graph that it gave up
            return trace(trained.model, trained.task, input)
    except Exception as error:
        if isinstance(error, SkipRNNError) or not is_own_cell(trained.config.cell):
            raise
        said = " ".join(str(error).split())[:200]
        raise SkipRNNError(
            f"cannot export the cell {trained.config.cell}: torch.export cannot trace it "
            f"({type(error).__name__}: {said}); write its candidate without choices that depend on numbers"
        ) from error


def _loaded(path: Path) -> Replay:
    """A program that was saved, for sequences."""
    program = torch.export.load(path).module()

    def replay(x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        _, output, update_gate = program(x, torch.full((len(x),), x.shape[1]) if lengths is None else lengths)
        return output, update_gate.bool()

    return replay


def _compare(replay: Replay, model: SequenceModel, task: Task, sequences: Split, input: InputForm) -> dict[str, Any]:
    found = []
    with torch.inference_mode():
        for start in range(0, len(sequences), CHECK_BATCH):
            part = sequences.take(slice(start, start + CHECK_BATCH))
            raw = part.x if task.reads_text else part.x.float()
            output, gate = replay(raw if input == "raw" else model.embedding(part.x), part.lengths)
            expected = model(part.x, part.lengths)
            found.append((output, gate, expected.output, expected.update_gate.bool()))
    output, gate, expected_output, expected_gate = map(torch.cat, zip(*found, strict=True))
    metric, exported = (
        float(task.metric(task.scores(said, sequences.y, sequences.lengths))) for said in (expected_output, output)
    )
    there = is_step(gate, sequences.lengths)
    return {
        "sequences": len(sequences),
        "gates": int(there.sum()),
        "gates_equal": int((gate == expected_gate)[there].sum()),
        "output_difference": float((output - expected_output).abs().max()),
        "metric_name": task.metric_name,
        "metric": metric,
        "metric_exported": exported,
        "used_mean": float(expected_gate.sum(1).float().mean()),
        "used_mean_exported": float(gate.sum(1).float().mean()),
    }
