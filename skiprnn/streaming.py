"""One sequence at a time: samples come one by one, and those the gate will skip are never asked for."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skiprnn import gate
from skiprnn.engines import native
from skiprnn.gate import GateState
from skiprnn.modules import SkipRNN
from skiprnn.stack import State

AHEAD = 32  # samples whose draws are made at a time, at least
FURTHEST = 2**20  # and at most: a gate that none of them opens, its probability below 1e-11, counts as shut for good


class Stream:
    """A trained Skip RNN that follows one sequence.

    After each sample it uses, the network knows how many of the following ones it will skip. ``pull`` fetches only
    those it needs; ``push`` and ``advance`` are for callers with a clock of their own; ``feed`` takes many at a time.
    Gates and outputs are those of ``rnn.eval()`` over the whole sequence; nothing is differentiated. In float32 on the
    CPU the steps are compiled, where the extension was built; the weights of ``rnn`` are then copied when the stream is
    made, those of the head never. A stream belongs to one thread, but several streams run in parallel: ``feed`` lets
    other threads run.

    A Bernoulli gate that draws, after ``rnn.draw_in_eval()``, is drawn ahead, so that here too it is known what will be
    skipped: a number a sample, the numbers that ``rnn`` would draw for it on the CPU.

    Args:
        rnn: a ``SkipLSTM``, ``SkipGRU`` or other ``SkipRNN``, of any number of layers.
        head: maps the last layer's h, (1, H), to a prediction, (1, ...); None predicts h itself.
        embed: maps a sample, whatever it is, to (D,) numbers; called for used samples only. None: samples are numbers.
        state: a state of batch size 1 to go on from; None is the initial state.
        generator: what a gate that draws draws from, on the CPU; None: torch's own.

    Raises:
        TypeError: ``rnn`` is not a Skip RNN.
        ValueError: ``rnn`` is bidirectional, or its gate is Bernoulli and it is in training; ``state`` is not one of
            batch size 1, or its gate holds what is no probability.
    """

    def __init__(
        self,
        rnn: SkipRNN,
        head: Callable[[Tensor], Tensor] | None = None,
        embed: Callable[[Any], Any] | None = None,
        state: State | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if not isinstance(rnn, SkipRNN):
            raise TypeError(f"a stream needs a SkipLSTM, SkipGRU or other SkipRNN, got {type(rnn).__name__}")
        rnn.check_step_by_step()
        self.rnn = rnn
        self.head = head
        self.embed = embed
        self._generator = generator
        self._draws = torch.empty(0) if rnn.draws else None  # what the next samples' sums are compared with
        packed = None
        if self._draws is None and native.unfit(rnn.cell, tuple(rnn.parameters())) is None:
            weights = rnn.layers(), rnn.update_weight, rnn.update_bias
            packed = native.PackedStack(rnn.cell, *weights, bounds=rnn.bounds, rounded=native.rounding())
        with torch.inference_mode(False), torch.no_grad():  # tensors that may be written to anywhere
            initial = rnn.initial_state(1)
            tensors = [tensor.clone() for tensor in initial]
            units = rnn.hidden_size if packed is None else packed.units
            self._states: list[Tensor] = [s.new_zeros(rnn.num_layers, units) for s in tensors[:-2]]
            self._p, self._zero = torch.ones_like(tensors[-2]), torch.zeros_like(tensors[-1])
        self._start: State = type(initial)(*tensors)
        self._follower = None if packed is None else native.Follower(packed, self._states, self._p)
        self.reset(state)

    @torch.no_grad()
    def reset(self, state: State | None = None) -> None:
        """Start a new sequence, or go on from a state of batch size 1.

        Raises:
            ValueError: ``state`` is not one of batch size 1, or its gate holds what is no probability.
        """
        given = self._start if state is None else state
        given = self.rnn._checked_state(given, (1,))
        for mine, tensor in zip(self._states, given, strict=False):
            mine[:, : self.rnn.hidden_size] = tensor[:, 0]
        self._p.copy_(given.update_prob)
        self._acc = given.cum_update_prob.detach().to(self._zero, copy=True)
        self._since = 0  # samples that passed since the sum was _acc
        self._skips = 0 if state is None else self._to_skip()  # a sequence's first sample is always used
        self._position = self._used = 0

    @property
    def position(self) -> int:
        """Samples that have passed, used or skipped: the number of the next one."""
        return self._position

    @property
    def used(self) -> int:
        """Samples that were used."""
        return self._used

    @property
    def skip_next(self) -> int:
        """How many of the next samples will be skipped; ``skiprnn.gate.NEVER`` if all will."""
        return self._skips

    @property
    def output(self) -> Tensor:
        """The last layer's h, (H,)."""
        return self._states[0][-1, : self.rnn.hidden_size].clone()

    @property
    @torch.no_grad()
    def prediction(self) -> Tensor:
        """What the head says at present; without a head, the last layer's h."""
        return self.output if self.head is None else self.head(self.output[None])[0]

    @property
    def state(self) -> State:
        """The state to go on from, as ``rnn(...)`` returns it for a batch of one."""
        states = [s[:, None, : self.rnn.hidden_size].clone() for s in self._states]
        return self.rnn._state(states, self._gate())

    def advance(self, n: int) -> None:
        """Let ``n`` samples pass, all of which are skipped.

        Raises:
            ValueError: one of them is needed.
        """
        if not 0 <= n <= self._skips:
            raise ValueError(f"cannot let {n} samples pass: of the next ones {self._skips} are skipped")
        self._pass(n)

    def push(self, sample: Any) -> bool:
        """Take the next sample, (D,) numbers or what ``embed`` takes; one that is skipped is not looked at.

        Returns:
            Whether it was used.

        Raises:
            ValueError: a used sample has not D numbers.
        """
        if self._skips:
            self._pass(1)
            return False
        numbers = self._numbers(sample if self.embed is None else self.embed(sample))
        size = self.rnn.input_size
        if numbers.shape != (size,) and not (size == 1 and numbers.dim() == 0):
            raise ValueError(f"sample {self._position} must have {size} numbers, got shape {tuple(numbers.shape)}")
        self._go_on(numbers.view(1, size))
        return True

    def feed(self, samples: Tensor) -> int:
        """Take several samples, (n, D) numbers, such as ``embed`` returns.

        Returns:
            How many of them were used.

        Raises:
            ValueError: the samples have not D numbers each.
        """
        numbers, before = self._numbers(samples), self._used
        if numbers.dim() != 2 or numbers.shape[1] != self.rnn.input_size:
            raise ValueError(f"samples must be (n, {self.rnn.input_size}), got shape {tuple(numbers.shape)}")
        if len(numbers) > self._skips:
            self._go_on(numbers)
        else:
            self._pass(len(numbers))
        return self._used - before

    def pull(self, read: Callable[[int], Any], length: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """Fetch the samples that are needed, by ``read(t)``, and yield t and the prediction after each.

        Args:
            read: returns sample t, t counted from the last reset; None ends the sequence.
            length: samples in the sequence; None goes on until ``read`` ends it, or no more are needed.
        """
        for t in self._used_samples(read, length):
            yield t, self.prediction

    def run(self, read: Callable[[int], Any], length: int | None = None) -> Tensor:
        """As ``pull``, to the end; returns the last prediction."""
        for _ in self._used_samples(read, length):
            pass
        return self.prediction

    def _used_samples(self, read: Callable[[int], Any], length: int | None) -> Iterator[int]:
        while self._skips != gate.NEVER and (length is None or self._position + self._skips < length):
            t = self._position + self._skips
            sample = read(t)
            if sample is None:
                return
            self._pass(self._skips)
            self.push(sample)
            yield t
        if length is not None:
            self._pass(max(length - self._position, 0))

    def _pass(self, n: int) -> None:
        self._position += n
        self._since += n
        if self._draws is not None:
            self._draws = self._draws[n:]
        if self._skips != gate.NEVER:
            self._skips -= n

    def _go_on(self, samples: Tensor) -> None:
        """Take samples (n, D), of which one at least is used."""
        if self._follower is not None:
            used, last, self._skips = self._follower.take(samples, self._skips)
            self._acc, self._since = self._zero, len(samples) - 1 - last
        else:
            with torch.no_grad():
                states = [tuple(s[k : k + 1] for s in self._states) for k in range(self.rnn.num_layers)]
                draws = None if self._draws is None else self._drawn(len(samples))[:, None].to(samples.device)
                _, after, now, update_gate = self.rnn._solve(
                    samples[:, None], states, self._gate(), every_step=False, draws=draws
                )
            for mine, tensors in zip(self._states, zip(*after, strict=True), strict=True):
                mine.copy_(torch.cat(tensors))
            self._p.copy_(now.update_prob)
            self._acc, self._since = now.cum_update_prob, 0
            if self._draws is not None:
                self._draws = self._draws[len(samples) :]
            used, self._skips = int(update_gate.sum()), self._to_skip()
        self._position += len(samples)
        self._used += used

    def _gate(self) -> GateState:
        """The gate's state, its sum brought up to date only where it is asked for."""
        if self._draws is None:
            acc = gate.advance(self._p, self._acc, self._since)
        else:
            acc = gate.sums_of(self._p, self._acc, self._since)[-1:]
        return GateState(self._p.clone(), acc)

    def _to_skip(self) -> int:
        """How many samples will be skipped after the last one that passed, whose sum is ``_acc``."""
        if self._draws is None:
            return int(gate.skipped_steps(self._p, self._acc))
        ahead = max(len(self._draws), AHEAD)
        while (steps := gate.drawn_steps(self._p, self._acc, self._drawn(ahead))) == ahead:
            if ahead >= FURTHEST:
                return gate.NEVER
            ahead *= 2
        return steps

    def _drawn(self, n: int) -> Tensor:
        """The draws of the next ``n`` samples."""
        assert self._draws is not None
        if n > len(self._draws):
            self._draws = torch.cat([self._draws, torch.rand(n - len(self._draws), generator=self._generator)])
        return self._draws[:n]

    def _numbers(self, samples: Any) -> Tensor:
        if isinstance(samples, np.ndarray) and not samples.flags.writeable:
            samples = samples.copy()  # torch warns of arrays that are not
        like = self._start[0]
        return torch.as_tensor(samples, dtype=like.dtype, device=like.device)
