"""Products of float32 by six of bfloat16: on a GPU where there is one, else in Triton's interpreter."""

import pytest
import torch

from tests.problems import assert_same, build, run

products = pytest.importorskip("skiprnn.engines.graph_products", reason="triton is not installed")
iterations = pytest.importorskip("skiprnn.engines.graph_iterations")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """Also small ones, on any GPU."""
    monkeypatch.setattr(products, "WORTH", 0)
    monkeypatch.setattr(products, "NARROWEST", 1)
    monkeypatch.setattr(products, "FAST", (torch.cuda.get_device_capability(),) if DEVICE == "cuda" else ())


def numbers(*shape):
    """Of many sizes, which do not cancel."""
    draws = torch.Generator().manual_seed(len(shape) + shape[0])
    sizes = torch.exp2(torch.randint(-12, 13, shape, generator=draws).double())
    return (torch.rand(shape, generator=draws, dtype=torch.float64) * sizes).float().to(DEVICE)


def worst(found, exact):
    """The largest error, of a number of the result."""
    return ((found.double() - exact) / exact).abs().max().item()


def test_a_product_is_as_good_as_float32(monkeypatch):
    monkeypatch.setattr(products, "AT_A_TIME", 32 * 7)
    monkeypatch.setattr(products, "LONGEST", 12)
    a, weight = numbers(5, 9, 32), numbers(11, 32)
    exact = a.double() @ weight.double().T
    assert products.product(a, weight).shape == exact.shape
    assert worst(products.product(a, weight), exact) < 2e-6
    assert worst(products.product(a.transpose(0, 1), weight), exact.transpose(0, 1)) < 2e-6
    into = torch.empty(45, 11, device=DEVICE)
    products.product(a.flatten(0, 1), weight, out=into)
    assert worst(into, exact.flatten(0, 1)) < 2e-6


def test_a_product_is_added_as_float32_would_be(monkeypatch):
    monkeypatch.setattr(products, "AT_A_TIME", 9 * 8)
    monkeypatch.setattr(products, "LONGEST", 3)
    a, b, total = numbers(37, 8), numbers(37, 9), numbers(8, 9)
    exact = total.double() + a.double().T @ b.double()
    products.add_product(total, a, b)
    assert worst(total, exact) < 2e-6


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_the_engine_equals_the_reference_with_them(name, monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setattr(iterations, "CHUNK", 2)
    shape, made = (6, 3, 4, 11, 2), []
    monkeypatch.setattr(products, "split", lambda *given, split=products.split: made.append(1) or split(*given))
    both = [
        build(name, shape, -1.5, engine, dtype).to(DEVICE)
        for engine, dtype in (("graph", torch.float32), ("reference", torch.float64))
    ]
    x = torch.randn(shape[:3], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_same(*(run(rnn, x) for rnn in both), tolerance=1e-5)
    assert len(made) > 10


def test_they_are_left_to_tf32_where_that_is_wanted():
    matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    try:
        for precision, is_ours in (("ieee", True), ("tf32", False)):
            matmul.fp32_precision = precision
            assert products.pays(torch.zeros(4, 4, device=DEVICE), 4, 4, 4) is is_ours
    finally:
        matmul.fp32_precision = before
