"""The network of every task: a recurrent stack and a linear head on its last state, or on that of every step."""

from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipelines.data.memory import check_fits
from pipelines.errors import SkipRNNError
from pipelines.runs.cells import cell_of
from pipelines.runs.config import TrainConfig
from pipelines.tasks import Task
from skiprnn import RandomSkipGRU, RandomSkipLSTM, SkipRNN, Stream
from skiprnn.cells import GRUCell, LSTMCell
from skiprnn.engines import ON_GPUS
from skiprnn.stack import RecurrentStack

OPEN = 100.0  # bias of a gate that opens at every step


class ModelOutput(NamedTuple):
    """What the network says of a batch."""

    output: Tensor  # (B, output_size), or (B, T, output_size) with each_step, float32
    update_gate: Tensor  # (B, T)


class SequenceModel(nn.Module):
    """An embedding of the input, a recurrent stack, and a linear head on its last hidden state, or on every one.

    With ``each_step`` what the head says stands through the steps that are skipped, whose state is a copy. It is
    computed there too: the gate's gradient wants the loss of each step by that step's state.
    """

    def __init__(
        self,
        rnn: RecurrentStack,
        output_size: int,
        embedding: nn.Module | None = None,
        dropout: float = 0,
        each_step: bool = False,
    ) -> None:
        super().__init__()
        self.each_step = each_step
        self.embedding = nn.Identity() if embedding is None else embedding
        self.rnn = rnn
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(rnn.hidden_size, output_size)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> ModelOutput:
        """x as the task stores it, (B, T, D) or (B, T), and lengths (B,) -> the output, and the gate (B, T)."""
        h, _, update_gate = self.rnn(self.embedding(x), lengths=lengths, every_step=self.each_step)
        return ModelOutput(self.head(self.dropout(h)).float(), update_gate)

    def with_rnn(self, rnn: RecurrentStack) -> "SequenceModel":
        """The same network around another recurrent stack, which takes over the weights it has names for."""
        other = SequenceModel(rnn, self.head.out_features, self.embedding, self.dropout.p, self.each_step)
        other.load_state_dict(self.state_dict(), strict=False)
        return other.to(self.head.weight.device).train(self.training)

    def cost_per_update(self) -> int:
        """Multiply-accumulates that one update takes, the paper's count: one for each number of a weight matrix."""
        return sum(weight.numel() for layer in self.rnn.layers() for weight in layer if weight.dim() > 1)


def build_model(config: TrainConfig, task: Task) -> SequenceModel:
    """The network a configuration asks for, freshly initialised.

    Raises:
        SkipRNNError: memory does not hold it.
    """
    with torch.device("meta"):  # shapes only
        size = sum(parameter.nbytes for parameter in _network(config, task).parameters())
    check_fits(size, f"a network of hidden_size {config.hidden_size} and num_layers {config.num_layers}")
    return _network(config, task)


def _network(config: TrainConfig, task: Task) -> SequenceModel:
    sizes = (task.input_size, config.hidden_size, config.num_layers)
    gate: dict[str, Any] = {
        "min_skip": config.min_skip, "max_skip": config.max_skip, "gate": config.gate, "engine": config.engine
    }  # fmt: skip
    rnn: RecurrentStack
    if config.skip:
        rnn = SkipRNN(cell_of(config), *sizes, batch_first=True, **gate)
    else:
        rnn = (RandomSkipLSTM if config.cell == "lstm" else RandomSkipGRU)(
            *sizes, batch_first=True, p_skip=config.p_skip or 0.0
        )
    return SequenceModel(rnn, task.output_size, task.embedding(), config.dropout, task.each_step)


def check_engine(config: TrainConfig, device: torch.device) -> None:
    """Refuse an engine that cannot run the network on the device.

    Raises:
        SkipRNNError: it cannot.
    """
    if config.engine not in ON_GPUS or not config.skip:
        return
    try:
        engine = import_module(f"skiprnn.engines.{config.engine}")
    except ImportError as error:
        raise SkipRNNError(f"--engine {config.engine} needs the package triton; install it, or use auto") from error
    if config.gate != "round":
        raise SkipRNNError(f"--engine {config.engine} has no gate that draws; use auto or events")
    if config.min_skip or config.max_skip is not None:
        raise SkipRNNError(
            f"--engine {config.engine} has no bounds of how many samples are skipped; use auto or events"
        )
    reason = engine.unfit(cell_of(config), config.num_layers, config.hidden_size, [torch.empty(0, device=device)])
    if reason:
        raise SkipRNNError(f"--engine {config.engine} cannot train this: {reason}; use auto or events")


def without_skipping(model: SequenceModel) -> SequenceModel:
    """The same weights with the gate always open: the plain LSTM or GRU, to compare time with.

    Of a cell that has no such baseline it is ours whose gate is open.
    """
    rnn = model.rnn
    if type(rnn.cell) not in (LSTMCell, GRUCell):
        return _with_open_gate(model)
    plain = RandomSkipLSTM if isinstance(rnn.cell, LSTMCell) else RandomSkipGRU
    return model.with_rnn(plain(rnn.input_size, rnn.hidden_size, rnn.num_layers, batch_first=True))


def with_gate(model: SequenceModel) -> SequenceModel:
    """The same function with a Skip RNN inside: of a plain cell, one whose gate is open at every step.

    Raises:
        SkipRNNError: the model skips at random.
    """
    if isinstance(model.rnn, SkipRNN):
        return model
    if getattr(model.rnn, "p_skip", 0):
        raise SkipRNNError("this model skips at random, so nobody can say which samples it needs; use another run")
    return _with_open_gate(model)


def _with_open_gate(model: SequenceModel) -> SequenceModel:
    rnn = model.rnn
    gated = SkipRNN(rnn.cell, rnn.input_size, rnn.hidden_size, rnn.num_layers, batch_first=True)
    other = model.with_rnn(gated)
    nn.init.zeros_(gated.update_weight)
    nn.init.constant_(gated.update_bias, OPEN)
    return other


def stream(model: SequenceModel) -> Stream:
    """The model following one sequence, whose samples are as the task stores them.

    Raises:
        SkipRNNError: the model skips at random.
    """
    gated = with_gate(model)
    embedding = model.embedding
    device = model.head.weight.device

    def embed(sample: Any) -> Tensor:
        numbers = torch.as_tensor(sample, device=device)
        numbers = numbers.int() if isinstance(embedding, nn.Embedding) else numbers.float()
        with torch.no_grad():
            embedded: Tensor = embedding(numbers)
        return embedded.reshape(-1)

    plain = isinstance(embedding, nn.Identity)
    return Stream(gated.rnn, lambda h: gated.head(h).float(), None if plain else embed)  # type: ignore[arg-type]


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """The precision a configuration asks for, as a context."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.amp == "bf16")
