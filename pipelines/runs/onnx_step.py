"""A step as an ONNX file: how it is written, and how it is run."""

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.runs.traced import Traced

OPSET = 20
ABOUT = "skiprnn"  # the key, among the metadata, of what the file says of itself


@contextmanager
def no_log() -> Iterator[None]:
    """Keep quiet what torch logs of its work, warnings too."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def write_onnx(traced: Traced, path: Path, about: dict[str, Any], *, int8: bool = False) -> None:
    """Write a step as an ONNX graph, with the initial state and ``about`` among its metadata, as JSON."""
    import onnx

    with ExitStack() as quiet:
        quiet.enter_context(warnings.catch_warnings(action="ignore"))
        quiet.enter_context(redirect_stdout(io.StringIO()))  # older versions of onnxscript print
        quiet.enter_context(no_log())
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
            # Of 7 bits: with 8, products overflow on CPUs with AVX2 that lack VNNI.
            quantize_dynamic(model, path, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
            model = onnx.load(str(path))
        for name, value in {**traced.initial, ABOUT: about}.items():
            model.metadata_props.add(key=name, value=json.dumps(value))
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


class OnnxStep:
    """A file's step in ONNX Runtime, run over whole sequences."""

    def __init__(self, path: Path, *, every_step: bool = False) -> None:
        """Open a file.

        Args:
            path: of the file.
            every_step: whether each step has an answer of its own.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.every_step = every_step

    def initial_state(self, batch: int) -> list[npt.NDArray[np.float32]]:
        """The state before the first step, as the file has it: h (and c), (layers, B, H), 1 and 0, (B,) each."""
        saved = self.session.get_modelmeta().custom_metadata_map
        names = [entry.name for entry in self.session.get_inputs()[1:]]
        values = [np.array(json.loads(saved[name]), dtype=np.float32) for name in names]
        return [np.repeat(value[:, None], batch, 1) if value.ndim else np.repeat(value, batch) for value in values]

    def __call__(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the step over (B, T, D), or (B, T) words: the outputs and the gate, (B, T) of bool.

        The outputs are the last ones, (B, outputs), or with ``every_step`` all, (B, T, outputs), of which those past
        ``lengths`` repeat the last. The first sample is used, each other one where the step before said so by
        skip_next = 0; none past ``lengths``.
        """
        names, state = [entry.name for entry in self.session.get_inputs()], self.initial_state(len(x))
        used, outputs, samples = np.ones(x.shape[:2], dtype=np.bool_), [], x.numpy()
        for t in range(x.shape[1]):
            given = dict(zip(names, [samples[:, t], *state], strict=True))
            _, output, *state, skip_next = self.session.run(None, given)
            outputs.append(output)
            used[:, t + 1 : t + 2] = skip_next[:, None] == 0
        ends = np.full(len(x), x.shape[1]) if lengths is None else lengths.numpy()
        last, rows, steps = np.maximum(ends, 1) - 1, np.arange(len(x)), np.arange(x.shape[1])
        whole = np.stack(outputs)  # (T, B, outputs)
        said = whole[np.minimum(steps, last[:, None]), rows[:, None]] if self.every_step else whole[last, rows]
        return torch.from_numpy(said), torch.from_numpy(used & (steps < ends[:, None]))
