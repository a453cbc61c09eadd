"""``export``: a run's step as an ONNX graph, checked against the model on a split of its data."""

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipelines.data.files import atomic_path, check_writable
from pipelines.data.sequences import Split
from pipelines.errors import SkipRNNError
from pipelines.runs.config import is_own_cell
from pipelines.runs.load import TrainedModel, load_run
from pipelines.runs.model import with_gate
from pipelines.tasks import Task
from skiprnn import SkipRNN
from skiprnn.networks import SequenceModel

OPSET = 20
CHECK_BATCH = 256  # sequences a call


@dataclass(frozen=True)
class Export:
    """What was written, and how it compares with the model it was made from."""

    out: str
    bytes: int
    int8: bool
    sequences: int  # compared, all their steps
    gates: int
    gates_equal: int
    output_difference: float  # largest, between last outputs, or those of all steps where each has an answer
    metric_name: str
    metric: float
    metric_exported: float
    used_mean: float
    used_mean_exported: float


class Step(nn.Module):
    """One step of a model, its state laid open: what ``export`` writes, and what ``torch.export`` can trace."""

    rnn: SkipRNN
    head: nn.Linear

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        gated = with_gate(model)
        assert isinstance(gated.rnn, SkipRNN)
        self.rnn, self.head = gated.rnn, gated.head
        self.rnn.engine = "auto"  # a run may have named one that cannot be traced

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """(B, D) and the fields of the state -> output (B, output_size), the fields again, and skip_next (B,)."""
        _, after, skip_next = self.rnn.step(x, self.rnn.cell.State(*state))
        return self.head(after[0][-1]).float(), *after, skip_next


class Traced(NamedTuple):
    """A step as ``torch.export`` has it, for any batch size, and the names of what goes in and comes out."""

    program: torch.export.ExportedProgram
    inputs: list[str]
    outputs: list[str]
    initial: dict[str, list[Any]]  # the state before the first step, of one sequence


def trace(model: SequenceModel) -> Traced:
    """Trace a model's step."""
    step = Step(model).cpu().eval()
    state = [tensor.detach() for tensor in step.rnn.initial_state(2)]
    fields = step.rnn.cell.State._fields
    initial = {
        name: (tensor[:, 0] if tensor.dim() == 3 else tensor[0]).tolist()
        for name, tensor in zip(fields, state, strict=True)
    }
    batch = torch.export.Dim("batch")
    of_state = tuple({1: batch} if tensor.dim() == 3 else {0: batch} for tensor in state)
    x = torch.zeros(2, step.rnn.input_size)
    with torch.no_grad():
        program = torch.export.export(step, (x, *state), dynamic_shapes=({0: batch}, of_state))
    return Traced(program, ["x", *fields], ["output", *(f"{name}_out" for name in fields), "skip_next"], initial)


def export_run(
    run: Path,
    out: Path,
    *,
    int8: bool = False,
    split: str = "test",
    checkpoint: str = "best",
    data: Path | None = None,
    overwrite: bool = False,
) -> Export:
    """Write a run's step as ONNX and replay a split with ONNX Runtime, step by step, beside the model itself.

    Args:
        run: the run directory.
        out: a path ending in .onnx.
        int8: quantise the weights of matrix products to 8 bits, activations on the fly.
        split, checkpoint, data: as for ``load.load_run``.
        overwrite: replace ``out`` if it exists.

    Returns:
        What was written, and how it compares with the run itself.

    Raises:
        SkipRNNError: the extra ``export`` is missing, the run cannot be read, its own cell cannot be traced, or ``out``
            cannot be written.
    """
    for package in ("onnx", "onnxruntime", "onnxscript"):
        try:
            import_module(package)
        except ImportError as error:
            raise SkipRNNError(
                f"export needs the package {package} ({error}); install the extra with `pip install 'skiprnn[export]'`"
            ) from error
    if Path(out).suffix != ".onnx":
        raise SkipRNNError(f"cannot export to {out}: its name must end in .onnx")
    check_writable(out, overwrite=overwrite)
    trained = load_run(run, split=split, checkpoint=checkpoint, data=data, device="cpu")
    with atomic_path(out, overwrite=overwrite) as temporary:
        _write(_traced(trained), temporary, int8)
        size = temporary.stat().st_size
        result = _compare(temporary, with_gate(trained.model), trained.task, trained.sequences)
    return Export(out=str(out), bytes=size, int8=int8, **result)


def _traced(trained: TrainedModel) -> Traced:
    """As ``trace``; what torch says of a cell of one's own becomes one message."""
    try:
        with _no_log(), redirect_stderr(io.StringIO()):  # where torch prints a graph that it gave up
            return trace(trained.model)
    except Exception as error:
        if not is_own_cell(trained.config.cell):
            raise
        said = " ".join(str(error).split())[:200]
        raise SkipRNNError(
            f"cannot export the cell {trained.config.cell}: torch.export cannot trace it "
            f"({type(error).__name__}: {said}); write its candidate without choices that depend on numbers"
        ) from error


@contextmanager
def _no_log() -> Iterator[None]:
    """Keep quiet what torch logs of its work, warnings too."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _write(traced: Traced, path: Path, int8: bool) -> None:
    import onnx

    with ExitStack() as quiet:
        quiet.enter_context(warnings.catch_warnings(action="ignore"))
        quiet.enter_context(redirect_stdout(io.StringIO()))  # older versions of onnxscript print
        quiet.enter_context(_no_log())
        program = torch.onnx.export(
            traced.program, input_names=traced.inputs, output_names=traced.outputs, opset_version=OPSET, verbose=False
        )
        if program is None:
            raise RuntimeError("torch.onnx.export returned nothing")
        model = program.model_proto
        _strip(model.graph)
        if int8:
            from onnxruntime.quantization import QuantType, quantize_dynamic

            del model.graph.value_info[:]  # the quantiser transposes weights and would find their shapes contradicted
            quantize_dynamic(model, path, weight_type=QuantType.QInt8, per_channel=True)
            model = onnx.load(str(path))
        for name, values in traced.initial.items():
            model.metadata_props.add(key=name, value=json.dumps(values))
        path.write_bytes(model.SerializeToString())


def _strip(graph: Any) -> set[str]:
    """Drop what nobody needs, and the exporter's notes, among them paths of source files, which outweigh a small model.

    Returns:
        The names that the graph's nodes read.
    """
    del graph.metadata_props[:]
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]
    needed = {output.name for output in graph.output}
    for node in graph.node:
        needed.update(node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):  # the body of a loop
                needed |= _strip(attribute.g)
    for weight in [weight for weight in graph.initializer if weight.name not in needed]:
        graph.initializer.remove(weight)
    return needed


def _compare(path: Path, model: SequenceModel, task: Task, sequences: Split) -> dict[str, Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = []
    with torch.inference_mode():
        for start in range(0, len(sequences), CHECK_BATCH):
            part = sequences.take(slice(start, start + CHECK_BATCH))
            lengths = None if part.lengths is None else part.lengths.numpy()
            said, used = replay(session, model.embedding(part.x).numpy(), lengths, every_step=model.each_step)
            expected = model(part.x, part.lengths)
            found.append((torch.from_numpy(said), torch.from_numpy(used), expected.output, expected.update_gate.bool()))
    output, gate, expected_output, expected_gate = map(torch.cat, zip(*found, strict=True))
    metric, exported = (
        float(task.metric(task.scores(said, sequences.y, sequences.lengths))) for said in (expected_output, output)
    )
    return {
        "sequences": len(sequences),
        "gates": gate.numel(),
        "gates_equal": int((gate == expected_gate).sum()),
        "output_difference": float((output - expected_output).abs().max()),
        "metric_name": task.metric_name,
        "metric": metric,
        "metric_exported": exported,
        "used_mean": float(expected_gate.sum(1).float().mean()),
        "used_mean_exported": float(gate.sum(1).float().mean()),
    }


def initial_state(session: Any, batch: int) -> list[npt.NDArray[np.float32]]:
    """The state before the first step, as the file has it: h (and c), (layers, B, H), 1 and 0, (B,) each."""
    saved = session.get_modelmeta().custom_metadata_map
    values = [np.array(json.loads(saved[entry.name]), dtype=np.float32) for entry in session.get_inputs()[1:]]
    return [np.repeat(value[:, None], batch, 1) if value.ndim else np.repeat(value, batch) for value in values]


def replay(
    session: Any, x: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64] | None = None, *, every_step: bool = False
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Run an exported step over (B, T, D) in ONNX Runtime: the outputs and the gate, (B, T).

    The outputs are the last ones, (B, outputs), or with ``every_step`` all, (B, T, outputs), of which those past
    ``lengths`` repeat the last. The first sample is used, each other one where the step before said so by
    skip_next = 0; none past ``lengths``.
    """
    names, state = [entry.name for entry in session.get_inputs()], initial_state(session, len(x))
    lengths = np.full(len(x), x.shape[1]) if lengths is None else lengths
    used, outputs = np.ones(x.shape[:2], dtype=np.bool_), []
    for t in range(x.shape[1]):
        output, *state, skip_next = session.run(None, dict(zip(names, [x[:, t], *state], strict=True)))
        outputs.append(output)
        used[:, t + 1 : t + 2] = skip_next[:, None] == 0
    last, rows, steps = np.maximum(lengths, 1) - 1, np.arange(len(x)), np.arange(x.shape[1])
    whole = np.stack(outputs)  # (T, B, outputs)
    said = whole[np.minimum(steps, last[:, None]), rows[:, None]] if every_step else whole[last, rows]
    return said, used & (steps < lengths[:, None])
