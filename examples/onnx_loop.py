"""Answer a CSV file with an exported run, reading only the samples it uses: numpy and ONNX Runtime are all it takes.

skiprnn export runs/recordings --out model.onnx
python examples/onnx_loop.py model.onnx recordings/007.csv
"""

import csv
import json
import sys
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import numpy as np
import onnxruntime


def about(session: onnxruntime.InferenceSession) -> dict[str, Any]:
    """What the file says of itself: task, names, mean, std and more."""
    return json.loads(session.get_modelmeta().custom_metadata_map["skiprnn"])


def follow(
    session: onnxruntime.InferenceSession, lines: Iterator[str], order: list[int] | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """The number of each row of CSV that is used, and the answer after it; it stands until the next.

    ``order`` says where in a row the model's columns stand, if not as in training.
    """
    known, metadata = about(session), session.get_modelmeta().custom_metadata_map
    inputs = [entry.name for entry in session.get_inputs()]
    state = [np.array(json.loads(metadata[name]), np.float32) for name in inputs[1:]]
    state = [value[:, None] if value.ndim else value[None] for value in state]  # a batch of one
    rows = enumerate(lines)
    for t, row in rows:
        sample = np.array([row.split(",")], np.float64).astype(np.float32)  # (1, D)
        sample = sample if order is None else sample[:, order]
        if known["input"] == "network" and known["mean"]:  # else that is done inside
            sample = (sample - np.float32(known["mean"])) / np.float32(known["std"])
        answer, _, *state, skip_next = session.run(None, dict(zip(inputs, [sample, *state], strict=True)))
        yield t, answer[0]
        if skipped := int(skip_next[0]):
            state[-1] = np.ones_like(state[-1])  # leave them all out, and the next one updates
            next(islice(rows, skipped, skipped), None)


def is_header(line: str) -> bool:
    """Whether a first line holds no number."""
    for cell in line.split(","):
        try:
            float(cell)
        except ValueError:
            continue
        return False
    return True


def order_of(columns: list[str] | None, header: str) -> list[int] | None:
    """Where the model's columns stand by the names in a header; None where the model knows no names."""
    found = [name.strip() for name in next(csv.reader([header]))]
    if columns is None:
        return None
    if sorted(found) == sorted(columns):
        return [found.index(name) for name in columns]
    sys.exit(f"the columns must be {', '.join(columns)}, in any order; the header says {', '.join(found)}")


def main(model: str, table: str) -> None:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    known, used, answer = about(session), [], None
    with open(table, encoding="utf-8-sig") as file:
        lines = (line for line in file if line.strip())
        first = next(lines)
        order = order_of(known["columns"], first) if is_header(first) else None
        for t, answer in follow(session, lines if is_header(first) else chain([first], lines), order):
            used.append(t)
            if known["each_step"]:
                print(t, *answer)
    print("used samples:", *used)
    for name, value in zip(known["names"], answer, strict=True):
        print(f"{name}: {value:.6g}")


if __name__ == "__main__":
    main(*sys.argv[1:])
