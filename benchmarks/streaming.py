"""Inference of one sequence at a time on the CPU: µs per input step, against torch's own LSTM and GRU in the same run.

    python benchmarks/streaming.py
    python benchmarks/streaming.py --units 110 --threads 1 --out benchmarks/results/mine.json

Rivals: nn.LSTM or nn.GRU over the whole sequence, and nn.LSTMCell or nn.GRUCell step by step. Ours: ``forward`` over
the whole sequence, with every output; ``Stream.feed`` over the whole sequence; ``Stream.run`` with a Python function
that returns one sample; ``step`` for each sample used, with ``advance`` over those that are skipped. All without
gradients. Usage is set through the gate's bias. Times are medians; columns x say how many times as fast as nn.LSTM or
nn.GRU over the whole sequence in the same round. "streams": steps a second of independent streams, one a thread.
"""

import argparse
import json
import statistics
import sys
import threading
import time
from pathlib import Path

import torch
from speed import USAGES, machine, set_usage
from torch import nn

from skiprnn import SkipGRU, SkipLSTM, Stream

CELLS = {"lstm": (SkipLSTM, nn.LSTM, nn.LSTMCell), "gru": (SkipGRU, nn.GRU, nn.GRUCell)}
WAYS = ("forward", "feed", "read", "step")


def main():
    options = parse()
    torch.set_num_threads(options.threads)
    setting = {
        **machine(torch.device("cpu")),
        "units": options.units, "steps": options.steps, "features": options.features,
    }  # fmt: skip
    print(json.dumps(setting, indent=2), file=sys.stderr)
    print("| cell | units | usage | whole | cell by cell | " + " | ".join(f"{way} | x" for way in WAYS) + " |")
    print("|---" * (5 + 2 * len(WAYS)) + "|")
    rows = []
    with torch.inference_mode():
        for cell in options.cells:
            for units in options.units:
                for usage in options.usage:
                    rows.append(measure(cell, units, usage, options))
                    show(rows[-1])
        scaling = [streams(count, options) for count in options.streams]
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({**setting, "rows": rows, "streams": scaling}, indent=2) + "\n")


def measure(cell, units, usage, options):
    torch.manual_seed(0)
    T, D = options.steps, options.features
    x = torch.randn(T, 1, D)
    skip, plain, plain_cell = CELLS[cell]
    rnn, whole, single = skip(D, units), plain(D, units), plain_cell(D, units)
    set_usage(rnn, usage)
    stream, samples = Stream(rnn), x[:, 0]

    def feed():
        stream.reset()
        stream.feed(samples)

    def read():
        stream.reset()
        stream.run(samples.__getitem__, T)

    def step():
        t, state = 0, None
        while t < T:
            _, state, skip_next = rnn.step(x[t], state)
            n = min(int(skip_next), T - 1 - t)
            if n:
                state = rnn.advance(state, n)
            t += 1 + n

    def cell_by_cell():
        state = None
        for sample in x:
            state = single(sample, state)

    functions = {
        "whole": lambda: whole(x), "cell_by_cell": cell_by_cell,
        "forward": lambda: rnn(x), "feed": feed, "read": read, "step": step,
    }  # fmt: skip
    times = {name: [] for name in functions}
    for round_number in range(options.warmup + options.repeats):
        for name, function in functions.items():
            repeats = options.inner if name in ("whole", "forward", "feed") else 1
            function()  # what the others left in the caches is not its fault
            start = time.perf_counter()
            for _ in range(repeats):
                function()
            if round_number >= options.warmup:
                times[name].append(1e6 * (time.perf_counter() - start) / repeats / T)
    row = {"cell": cell, "units": units, "usage": usage, "used": rnn(x).update_gate.mean().item()}
    row["us_per_step"] = {name: statistics.median(values) for name, values in times.items()}
    row["times_as_fast"] = {
        way: statistics.median(a / b for a, b in zip(times["whole"], times[way], strict=True)) for way in WAYS
    }
    return row


def show(row):
    us, ratio = row["us_per_step"], row["times_as_fast"]
    theirs = f"{us['whole']:.2f} | {us['cell_by_cell']:.1f}"
    ours = " | ".join(f"{us[way]:.3f} | {ratio[way]:.2f}" for way in WAYS)
    print(f"| {row['cell']} | {row['units']} | {row['used']:.1%} | {theirs} | {ours} |", flush=True)


def streams(count, options):
    """Steps a second of ``count`` streams in as many threads."""
    torch.manual_seed(0)
    rnn = SkipLSTM(options.features, options.units[0])
    set_usage(rnn, "50%")
    samples, all_streams = torch.randn(20_000, options.features), [Stream(rnn) for _ in range(count)]
    rates = []
    for _ in range(options.repeats):
        threads = [threading.Thread(target=stream.feed, args=(samples,)) for stream in all_streams]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rates.append(count * len(samples) / (time.perf_counter() - start))
    rate = statistics.median(rates)
    print(f"{count} streams: {rate:,.0f} steps/s", flush=True)
    return {"streams": count, "steps_per_second": rate}


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def several(kind):
        return lambda text: [kind(word) for word in text.split(",")]

    parser.add_argument("--cells", type=several(str), default=list(CELLS), help=f"of {', '.join(CELLS)}")
    parser.add_argument("--units", type=several(int), default=[110, 128, 512])
    parser.add_argument(
        "--usage", type=several(str), default=["100%", "50%", "10%", "3%"], help=f"of {list(USAGES)}".replace("%", "%%")
    )
    parser.add_argument("--steps", type=int, default=784)
    parser.add_argument("--features", type=int, default=1)
    parser.add_argument("--streams", type=several(int), default=[1, 2])
    parser.add_argument("--threads", type=int, default=1, help="threads of torch within one sequence")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--inner", type=int, default=5, help="calls a measurement, of the fast functions")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.set_defaults(dtype="float32", tf32=False, batch=1, engine="auto")
    return parser.parse_args()


if __name__ == "__main__":
    main()
