"""The network that a run's configuration asks for, and what becomes of it once it is trained."""

from importlib import import_module

import torch

from pipelines.data.memory import check_fits
from pipelines.errors import SkipRNNError
from pipelines.runs import captured
from pipelines.runs.cells import cell_of
from pipelines.runs.config import TrainConfig
from pipelines.tasks import Task
from skiprnn import RandomSkipGRU, RandomSkipLSTM, Stream
from skiprnn.cells import GRUCell, LSTMCell
from skiprnn.engines import ON_GPUS
from skiprnn.networks import SequenceModel, recurrent_stack, shapes_only
from skiprnn.trained import OF_THE_STACK


def build_model(config: TrainConfig, task: Task) -> SequenceModel:
    """The network a configuration asks for, freshly initialised.

    Raises:
        SkipRNNError: memory does not hold it.
    """
    with shapes_only():
        size = sum(parameter.nbytes for parameter in _network(config, task).parameters())
    check_fits(size, f"a network of hidden_size {config.hidden_size} and num_layers {config.num_layers}")
    return _network(config, task)


def _network(config: TrainConfig, task: Task) -> SequenceModel:
    options = {name: getattr(config, name) for name in (*OF_THE_STACK, "engine")}
    rnn = recurrent_stack(cell_of(config), task.input_size, config.hidden_size, config.num_layers, **options)
    return SequenceModel(rnn, task.output_size, task.embedding(), config.dropout, task.each_step)


def check_network(config: TrainConfig, device: torch.device | None) -> None:
    """Refuse what only the network's cell or its engine shows that it cannot be.

    Args:
        config: of a run.
        device: where it is to train; None: elsewhere, where its engine is looked at.

    Raises:
        SkipRNNError: the cell, one's own, cannot have a memory, or the device cannot run the network as is asked for.
    """
    if config.memory is not None and not cell_of(config).can_remember:
        raise SkipRNNError(
            f"--memory {config.memory} is drawn into a gate that keeps the state; the cell {config.cell} says of none "
            "(keeps of a GatedCell, or remember); see docs/cells.md"
        )
    if device is None:
        return
    if config.cuda_graph and device.type == "cuda" and (reason := captured.why_not(config, device)):
        raise SkipRNNError(f"--cuda-graph cannot be: {reason}; drop it")
    if config.engine not in ON_GPUS or not config.skip:
        return
    try:
        engine = import_module(f"skiprnn.engines.{config.engine}")
    except ImportError as error:
        raise SkipRNNError(f"--engine {config.engine} needs the package triton; install it, or use auto") from error
    if config.engine == "graph" and config.gate != "round":
        raise SkipRNNError(f"--engine {config.engine} has no gate that draws; use auto or events")
    if config.engine == "graph" and (config.min_skip or config.max_skip is not None):
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
        return model.with_open_gate()
    plain = RandomSkipLSTM if isinstance(rnn.cell, LSTMCell) else RandomSkipGRU
    return model.with_rnn(plain(rnn.input_size, rnn.hidden_size, rnn.num_layers, batch_first=True))


def with_gate(model: SequenceModel) -> SequenceModel:
    """The same function with a Skip RNN inside: of a plain cell, one whose gate is open at every step.

    Raises:
        SkipRNNError: the model skips at random.
    """
    try:
        return model.with_gate()
    except ValueError as error:
        raise SkipRNNError(str(error)) from error


def stream(model: SequenceModel) -> Stream:
    """The model following one sequence, whose samples are as the task stores them.

    Raises:
        SkipRNNError: the model skips at random.
    """
    return with_gate(model).stream()


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """The precision a configuration asks for, as a context."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.amp == "bf16")
