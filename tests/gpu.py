"""What tests on a GPU share."""

import warnings

import pytest
import torch


def on_gpu(test):
    """Mark a test that ``make gpu-test`` runs, and that others skip."""
    skip = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    return pytest.mark.gpu(skip(test))


def waits_for_a_gpu(work):
    """Where work waits for the GPU, as torch tells it."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return places(told)


def places(told):
    """Where the host waited, of the warnings it was told."""
    return [f"{one.filename}:{one.lineno}" for one in told if "synchronizing CUDA operation" in str(one.message)]
