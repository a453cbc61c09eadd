"""Where the mathematics runs."""

import torch

from pipelines.errors import SkipRNNError


def choose_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise SkipRNNError("no CUDA device is available to torch; pass --device cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
