"""The engines against what the authors' own cells computed (tests/golden)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from skiprnn import SkipGRU, SkipLSTM, budget_loss
from skiprnn.modules import ENGINES

FILES = sorted((Path(__file__).parent / "golden").glob("*.npz"))


def load(golden, engine, dtype):
    """The module with the file's parameters. The file's one bias a layer becomes bias_ih; bias_hh is zero."""
    layers = sum(key.startswith("param/weight_hh") for key in golden)
    hidden, inputs = golden["param/update_weight"].shape[0], golden["x"].shape[2]
    module = SkipLSTM if "param/c0_l0" in golden else SkipGRU
    options = {} if module is SkipLSTM else {"reset_after": False}
    rnn = module(inputs, hidden, layers, batch_first=True, engine=engine, dtype=dtype, **options)
    parameters = dict(rnn.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(golden_value(golden, "param", name, parameter))
    return rnn, parameters


def golden_value(golden, kind, name, parameter):
    if name.startswith("initial_"):
        letter = name[-1]
        rows = [golden[f"{kind}/{letter}0_l{k}"] for k in range(parameter.shape[0])]
        return torch.from_numpy(np.stack(rows)).to(parameter.dtype).reshape(parameter.shape)
    if name.startswith("bias_hh"):
        return torch.zeros_like(parameter)
    array = golden[f"{kind}/{name.replace('bias_ih', 'bias')}"]
    return torch.from_numpy(array).to(parameter.dtype).reshape(parameter.shape)


def test_all_golden_files_are_here():
    assert len(FILES) == 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("engine", ["auto", *(engine for engine in ENGINES if engine != "triton")])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_equals_the_authors_cells(path, engine, dtype):
    check(path, engine, dtype, torch.device("cpu"))


@pytest.mark.parametrize("path", [p for p in FILES if "lstm_layers1" in p.stem], ids=lambda path: path.stem)
def test_the_gpu_engine_equals_the_authors_cells(path):
    pytest.importorskip("triton")
    check(path, "triton", torch.float32, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def check(path, engine, dtype, device):
    with np.load(path) as arrays:
        golden = dict(arrays)
    rnn, parameters = load(golden, engine, dtype)
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
