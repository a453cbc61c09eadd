"""Time and memory of a Skip RNN against torch's own LSTM and GRU and against the step loop, same inputs, same run.

    python benchmarks/speed.py --device cpu
    python benchmarks/speed.py --shapes sine,mnist --cells lstm --out benchmarks/results/mine.json
    python benchmarks/speed.py --device cuda --engine cuda --shapes mnist --autocast
    python benchmarks/speed.py --device cuda --shapes mnist --captured
    python benchmarks/speed.py --shapes imdb --words 12000 --usage 100%,50%,10%

The loss is the mean square of the last state plus a budget; outputs of other steps are not made. Usage is set through
the gate's bias, its weight being zero; "mixed" has a random weight and inputs that differ in mean between sequences, so
that sequences differ in usage. With --captured every pass, the rival's too, is a CUDA graph that is replayed.
With --words samples are drawn from so many vectors, which are trained: torch's cell reads an embedding's output, the
Skip RNN their numbers; GFLOP/s then counts products that need not be made.
Times are medians, on CUDA between events of the device; peak memory is what one forward and backward pass adds to the
process (CPU) or allocator (CUDA). The columns x say how many times as good as torch's own cell. GFLOP/s counts three
products with the weights for each used sample (forward, and back to the states and the weights); on the CPU the share
is of what numpy's matrix product (with --autocast torch's, of bfloat16) reaches here, in the same run.
"""

import argparse
import ctypes
import gc
import json
import math
import statistics
import sys
import time
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from skiprnn import SkipGRU, SkipLSTM, budget_loss, compiled
from skiprnn.engines import ENGINES, native

SHAPES = {  # steps, features, units, layers
    "adding": (50, 2, 110, 1),
    "sine": (200, 1, 110, 1),
    "mnist": (784, 1, 110, 1),
    "imdb": (400, 300, 128, 1),
    "ucf101": (250, 2048, 512, 2),
}
CELLS = {
    "lstm": (SkipLSTM, nn.LSTM),
    "gru": (SkipGRU, nn.GRU),
    "gru-before": (partial(SkipGRU, reset_after=False), nn.GRU),  # the paper's
}
USAGES = {"100%": 1, "50%": 2, "25%": 4, "10%": 10, "5%": 20, "3%": 33}  # a sample in n


def main():
    options = parse()
    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.tf32
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    setting = describe(options, device)
    print(json.dumps(setting, indent=2), file=sys.stderr)
    print(
        "| shape | cell | usage | used | forward, ms | x | forward + backward, ms | x | GFLOP/s | of the limit "
        "| peak memory, MB | x |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    rows = []
    for shape in options.shapes:
        steps, features, units, layers = SHAPES[shape]
        torch.manual_seed(0)
        x = torch.randn(steps, options.batch, features, device=device, dtype=dtype)
        mixed = x + torch.linspace(-2, 2, options.batch, device=device, dtype=dtype)[:, None]
        table = None
        if options.words:
            x = torch.randint(options.words, x.shape[:2], device=device)
            table = torch.randn(options.words, features, device=device, dtype=dtype, requires_grad=True)
        for cell in options.cells:
            skip, plain = CELLS[cell]
            sizes = {
                "input_size": features,
                "hidden_size": units,
                "num_layers": layers,
                "device": device,
                "dtype": dtype,
            }
            rival = measure(plain(**sizes), x, options, table)
            rows.append(show(shape, cell, f"nn.{plain.__name__}", rival, rival, setting))
            if options.step_loop:
                loop = skip(**sizes, engine="reference")
                set_usage(loop, "100%")
                rows.append(show(shape, cell, "step loop, 100%", measure(loop, x, options, table), rival, setting))
            for usage in options.usage:
                torch.manual_seed(1)
                rnn = skip(**sizes, engine=options.engine)
                set_usage(rnn, usage)
                result = measure(rnn, mixed if usage == "mixed" else x, options, table)
                rows.append(show(shape, cell, usage, result, rival, setting))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({**setting, "rows": rows}, indent=2) + "\n")


def set_usage(rnn, usage):
    if usage == "mixed":
        with torch.no_grad():
            rnn.update_weight.normal_(0, 8 / math.sqrt(rnn.hidden_size))
            rnn.update_bias.fill_(-1)
            return
    use_one_in(rnn, USAGES[usage])


@torch.no_grad()
def use_one_in(rnn, n):
    p = 0.9 if n == 1 else (0.5 / n + 0.5 / (n - 1)) / 2
    rnn.update_weight.zero_()
    rnn.update_bias.fill_(math.log(p / (1 - p)))


def forward(rnn, x, table):
    """A loss, and the gate where there is one."""
    if isinstance(rnn, nn.LSTM | nn.GRU):
        _, last = rnn(x if table is None else nn.functional.embedding(x, table))
        return (last[0] if isinstance(last, tuple) else last)[-1].square().mean(), None
    last, _, gate = rnn(x, every_step=False, table=table)
    return last.square().mean() + budget_loss(gate, 1e-4, batch_first=False), gate


def measure(rnn, x, options, table):
    def run():
        with precision():
            loss = forward(rnn, x, table)[0]
        loss.backward()

    def run_forward():
        with torch.no_grad(), precision():
            forward(rnn, x, table)

    def precision():
        return torch.autocast(options.device, torch.bfloat16, enabled=options.autocast)

    passes, begun = (run_forward, run), run
    if options.captured:
        passes, begun = [capture(one, rnn) for one in passes], partial(capture, run, rnn)
    result = {
        "forward_ms": timed(passes[0], options),
        "training_ms": timed(passes[1], options),
        "peak_mb": peak_memory(begun, x),
    }
    with torch.no_grad(), precision():
        gate = forward(rnn, x, table)[1]
    used = torch.ones(1) if gate is None else gate.mean(0)
    if gate is not None:
        result["used"] = [used.mean().item(), used.min().item(), used.max().item()]
    weights = sum(p.numel() for name, p in rnn.named_parameters() if name.startswith("weight_"))
    operations = 3 * 2 * weights * used.mean().item() * x.shape[0] * x.shape[1]
    return {**result, "gflops": operations / result["training_ms"] / 1e6}


@cache
def side_stream():
    """One, as libraries keep memory for each."""
    return torch.cuda.Stream()


def capture(function, rnn):
    """The replay of a function as a CUDA graph."""
    graph, stream = torch.cuda.CUDAGraph(), side_stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    rnn.zero_grad(set_to_none=True)  # gradients that the graph makes, rather than adds to
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def timed(function, options):
    times = []
    for _ in range(options.warmup + options.repeats):
        if options.device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        else:
            begun = time.perf_counter()
            function()
            times.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(times[options.warmup :])


def peak_memory(function, x):
    gc.collect()
    if x.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if not Path("/proc/self/clear_refs").exists():
        return math.nan
    native.forget_memory()
    ctypes.CDLL(None).malloc_trim(0)  # give back what earlier runs left, so that it counts anew
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the present size
    before = status("VmRSS")
    function()
    return (status("VmHWM") - before) / 1024


def status(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise KeyError(field)


def show(shape, cell, what, result, rival, setting):
    used = result.get("used")
    used_text = (
        ""
        if used is None
        else f"{used[0]:.1%}" + (f" ({used[1]:.0%}-{used[2]:.0%})" if used[2] - used[1] > 0.01 else "")
    )
    limit = setting["limit_gflops"]
    share = "" if limit is None else f"{result['gflops'] / limit:.0%}"
    ratios = {name: rival[name] / max(result[name], 1e-9) for name in ("forward_ms", "training_ms", "peak_mb")}
    print(
        f"| {shape} | {cell} | {what} | {used_text} | {result['forward_ms']:.1f} | {ratios['forward_ms']:.2f} "
        f"| {result['training_ms']:.1f} | {ratios['training_ms']:.2f} "
        f"| {result['gflops']:.0f} | {share} "
        f"| {result['peak_mb']:.0f} | {ratios['peak_mb']:.1f} |",
        flush=True,
    )
    return {"shape": shape, "cell": cell, "what": what, **result, "times_as_good": ratios}


def describe(options, device):
    return {
        **machine(device),
        "dtype": options.dtype,
        "tf32": options.tf32,
        "autocast": options.autocast,
        "captured": options.captured,
        "words": options.words,
        "batch": options.batch,
        "engine": options.engine,
        "repeats": options.repeats,
        "limit_gflops": matrix_product_gflops(options.autocast) if device.type == "cpu" else None,
    }


def matrix_product_gflops(bfloat16):
    """What the machine reaches in a large matrix product: numpy's, with threads as its environment says, or torch's."""
    a = torch.ones(2048, 2048, dtype=torch.bfloat16) if bfloat16 else np.ones((2048, 2048), dtype=np.float32)
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - begun)
    return 2 * 2048**3 / min(times) / 1e9


def machine(device):
    cpu = next((line.split(":")[1].strip() for line in cpu_lines() if line.startswith("model name")), "unknown")
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "compiled_cpu_path": compiled.LIBRARY is not None,
        "torch": torch.__version__,
    }


def cpu_lines():
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*USAGES, "mixed"]

    def choice(allowed):
        def convert(text):
            values = text.split(",")
            if unknown := set(values) - set(allowed):
                raise argparse.ArgumentTypeError(f"unknown {unknown}; choose from {', '.join(allowed)}")
            return values

        return convert

    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shapes", type=choice(SHAPES), default=list(SHAPES), help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--cells", type=choice(CELLS), default=list(CELLS), help=f"of {', '.join(CELLS)}")
    parser.add_argument("--usage", type=choice(names), default=names, help=f"of {', '.join(names)}".replace("%", "%%"))
    parser.add_argument("--engine", choices=list(ENGINES), default="auto")
    parser.add_argument("--no-step-loop", dest="step_loop", action="store_false", help="leave the reference out")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--tf32", action="store_true", help="TF32 matrix products on CUDA")
    parser.add_argument("--autocast", action="store_true", help="bfloat16 matrix products, by torch.autocast")
    parser.add_argument("--captured", action="store_true", help="every pass as a CUDA graph; without the step loop")
    parser.add_argument("--words", type=int, help="draw samples from so many vectors, which are trained; not for mixed")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    stacks = [shape for shape in options.shapes if SHAPES[shape][3] > 1]
    if options.captured and (options.device != "cuda" or stacks):
        parser.error("--captured needs --device cuda and --shapes of one layer")
    if options.words and (options.captured or "mixed" in options.usage):
        parser.error("--words goes without --captured, and with a --usage without mixed")
    options.step_loop &= not options.captured
    return options


if __name__ == "__main__":
    main()
