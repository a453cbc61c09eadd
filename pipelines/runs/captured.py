"""On a GPU: what a training step differentiates, as a CUDA graph, replayed on batch after batch.

The host then has one call to make for the loss and its gradients, instead of some hundred, and where few samples are
used it is the host that a step waits for.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from pipelines.data.sequences import Sequences
from pipelines.errors import SkipRNNError
from pipelines.runs.cells import cell_of
from pipelines.runs.config import TrainConfig
from skiprnn.engines import cuda

BEFORE = 3  # steps that are run as ever, in which kernels are compiled and libraries take their memory

Work = Callable[[Sequences, Tensor, Tensor], Tensor]
"""Of a batch, λ and the share of it that acts, both on the device: what is measured. It leaves gradients."""


def why_not(config: TrainConfig, device: torch.device) -> str | None:
    """Why steps of a run cannot be captured; None if they can."""
    if device.type != "cuda":
        return f"it is a matter of CUDA devices, not of {device}"
    if config.engine not in ("auto", "cuda"):
        return f"the engine {config.engine} waits for the device; the engine cuda does not"
    if lacking := cuda.unfit(cell_of(config), config.num_layers, config.hidden_size, [torch.empty(0, device=device)]):
        return f"the engine cuda cannot run the network: {lacking}"
    if config.dropout or config.p_skip or config.gate != "round":
        return "a step draws: dropout, p_skip or the gate"
    return "λ is found from each batch's usage" if config.target_usage is not None else None


class CapturedSteps:
    """The same as ``work``, captured once for the batches of one size, after a few that are not."""

    def __init__(self, work: Work, parameters: Iterable[nn.Parameter], batch_size: int) -> None:
        self._work = work
        self._parameters = list(parameters)
        self._batch_size = batch_size
        self._before = BEFORE
        self._replay: Callable[[], None] | None = None

    def take(self, batch: Sequences) -> bool:
        """Whether the next step is to be ``run``: not the first few, and no smaller batch.

        Raises:
            SkipRNNError: the work cannot be captured.
        """
        if len(batch) != self._batch_size:
            return False
        if self._before:
            self._before -= 1
            return False
        if self._replay is None:
            self._capture(batch)
        return True

    def run(self, batch: Sequences, lam: float | Tensor, lam_share: float) -> Tensor:
        """What is measured, until the next step; gradients are in the parameters."""
        assert self._replay is not None
        for mine, given in zip(_tensors(self._batch), _tensors(batch), strict=True):
            mine.copy_(given)
        self._lam.fill_(lam)
        self._lam_share.fill_(lam_share)
        self._replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return self._measured

    def _capture(self, batch: Sequences) -> None:
        self._batch = batch.copied()
        self._lam, self._lam_share = batch.x.new_zeros(2, dtype=torch.float32).unbind()
        for parameter in self._parameters:  # so that the graph makes gradients, rather than adds to them
            parameter.grad = None
        try:
            self._replay, self._measured = record(lambda: self._work(self._batch, self._lam, self._lam_share))
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise SkipRNNError(f"a step cannot be captured as a CUDA graph ({reason}); drop --cuda-graph") from error
        self._gradients = [parameter.grad for parameter in self._parameters]


def record(work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Capture some work on the GPU as a CUDA graph: its replay, and what the work returns once it was replayed."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # a loader's thread may pin memory meanwhile
        result = work()
    return graph.replay, result


def _tensors(batch: Sequences) -> Sequence[Tensor]:
    return [batch.x, batch.y, *([] if batch.lengths is None else [batch.lengths])]
