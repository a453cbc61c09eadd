"""The engines against what the authors' own cells computed (golden)."""

import numpy as np
import pytest
import torch

from skiprnn import budget_loss
from skiprnn.engines import ENGINES
from tests.problems import GOLDEN, golden_value, load_golden


def test_all_golden_files_are_here():
    assert len(GOLDEN) == 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("engine", [e for e in ENGINES if e not in ("cuda", "graph")])
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_equals_the_authors_cells(path, engine, dtype):
    check(path, engine, dtype, torch.device("cpu"))


def in_time(engine, path):
    """Triton's interpreter takes a second an update."""
    slow = engine == "graph" and not torch.cuda.is_available() and "layers2" in path.stem
    return [pytest.mark.slow(reason="10 to 35 updates in Triton's interpreter")] if slow else []


@pytest.mark.parametrize(
    ("engine", "path"),
    [
        pytest.param(engine, path, id=f"{engine}-{path.stem}", marks=in_time(engine, path))
        for engine in ("cuda", "graph")
        for path in GOLDEN
    ],
)
def test_the_gpu_engines_equal_the_authors_cells(engine, path):
    if engine == "cuda" and "layers1" not in path.stem:
        pytest.skip("of more than one layer it has no cells")
    if engine == "graph":
        pytest.importorskip("triton")
    if not torch.cuda.is_available() and engine == "graph" and "layers1" in path.stem:
        pytest.skip("needs a GPU: Triton's interpreter is slow, and the files with two layers will do there")
    check(path, engine, torch.float32, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def check(path, engine, dtype, device):
    with np.load(path) as arrays:
        golden = dict(arrays)
    rnn, parameters = load_golden(golden, engine, dtype)
    x, out_weight = (torch.from_numpy(golden[name]).to(device, dtype) for name in ("x", "out_weight"))
    rnn.to(device)

    output, _, update_gate = rnn(x)
    loss = (output * out_weight).sum() / len(x) + budget_loss(update_gate, float(golden["lam"]), batch_first=True)
    loss.backward()

    assert np.array_equal(update_gate.detach().cpu().numpy(), golden["update_gate"])
    assert np.abs(output.detach().cpu().numpy() - golden["output"]).max() <= 1e-6
    assert loss.item() == pytest.approx(float(golden["loss"]), rel=1e-5)
    for name, parameter in parameters.items():
        if name.startswith("bias_hh"):
            continue  # equals bias_ih where it is added to it, and the files have one bias
        expected = golden_value(golden, "grad", name, parameter).cpu()
        error = (parameter.grad.cpu() - expected).abs().max() / expected.abs().max()
        assert error <= 1e-5, name
