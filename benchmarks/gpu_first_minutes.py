"""The first minutes on a GPU: is it correct, does it repeat itself, how fast, where does the time go, which options.

    python benchmarks/gpu_first_minutes.py --out benchmarks/results/gpu.json

Every result is a line of JSON as it comes. A phase survives its own failure and stops at its share of the time.
"""

import argparse
import itertools
import json
import os
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from speed import SHAPES, machine, timed, use_one_in
from torch import nn

from skiprnn import SkipGRU, SkipLSTM, budget_loss
from skiprnn.engines import cuda_kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

CELLS = {"lstm": (SkipLSTM, nn.LSTM), "gru": (SkipGRU, nn.GRU)}
PRECISIONS = ("float32", "tf32", "bf16")
HELD = ((20, 32), (8, 48), (12, 16), (16, 24), (24, 40), (28, 24), (20, 56))  # weights in registers, forward and back
SAID = []
ONCE = argparse.Namespace(device="cpu", repeats=1, warmup=0)


def main():
    options = parse()
    torch.set_num_threads(1)
    for phase in options.phases:
        begun = time.monotonic()
        try:
            PHASES[phase](options, begun + PHASE_SECONDS)
        except Exception:
            say(phase, error=traceback.format_exc()[-800:])
        say(phase, seconds=round(time.monotonic() - begun, 1))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n  ".join(json.dumps(line) for line in SAID)
        options.out.write_text(f"[\n  {lines}\n]\n")


def say(phase, **what):
    SAID.append({"phase": phase, **what})
    print(json.dumps(SAID[-1]), flush=True)


def env(options, until):
    device = torch.device(DEVICE)
    extra = {}
    if DEVICE == "cuda":
        properties = torch.cuda.get_device_properties(0)
        extra = {"multiprocessors": properties.multi_processor_count, "cudnn": torch.backends.cudnn.version()}
    say("env", **machine(device), cuda=torch.version.cuda, python=sys.version.split()[0], **extra)


def correct(options, until):
    """Against the definition in float64. Without rounding gates follow the data, else the bias alone."""
    if options.tiny:
        cases = itertools.product(("float32",), CELLS, (8,), (3,), (1, 10))
    else:
        cases = itertools.product(("float32", "bf16"), CELLS, (110, 8, 128, 64), (256, 1, 512, 1100), (1, 10))
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for said in pool.map(_correct, list(cases)):
            say("correct", **said)


def _correct(case):
    precision, cell, units, batch, features = case
    steps = 24 if DEVICE == "cuda" else 6
    try:
        exact = build(cell, features, units, "reference", bias=-1.5).double()
        mine = build(cell, features, units, "cuda", bias=-1.5)
        if precision == "bf16":
            for rnn in (mine, exact):
                rnn.update_weight.data.zero_()
        x = torch.randn(steps, batch, features, generator=torch.Generator().manual_seed(1)).to(DEVICE)
        (a, mine_gradients), (b, gradients) = once(mine, x, precision, True), once(exact, x.double(), "float32", True)
        same = (a.update_gate.double() == b.update_gate).all(0)  # a flip changes all that follows in its sequence
        error = {
            name: ((mine_gradients[name].double() - g).norm() / g.norm().clamp(min=1e-12)).item()
            for name, g in gradients.items()
        }
        worst = max(error, key=error.get)
        output = (a.output.double() - b.output)[:, same].norm() / b.output.norm()
        return {
            "case": case, "flipped": int((~same).sum()), "output": output.item(), "worst": [worst, error[worst]]
        }  # fmt: skip
    except Exception:
        return {"case": case, "error": traceback.format_exc()[-600:]}


def same(options, until):
    """The same bits every time."""
    times = 2 if options.tiny else 30
    for precision, (units, batch) in itertools.product(("float32", "bf16"), ((110, 256), (8, 256), (110, 1100))):
        rnn = build("lstm", 1, 5 if options.tiny else units, "cuda", bias=-1.5)
        x = torch.randn(*((5, 3, 1) if options.tiny else (100, batch, 1)), device=DEVICE)
        runs = [once(rnn, x, precision, True) for _ in range(times)]
        differ = {k for _, g in runs[1:] for k in g if not torch.equal(g[k], runs[0][1][k])}
        outputs = sum(not torch.equal(run[0].output, runs[0][0].output) for run in runs)
        say("same", case=[precision, units, batch], outputs_differ=outputs, gradients_differ=sorted(differ))


def rival(options, until):
    """torch's own cells."""
    for shape, cell in itertools.product(options.shapes, CELLS):
        steps, features, units, layers = _shape(shape, options)
        rnn = CELLS[cell][1](features, units, layers).to(DEVICE)
        x = torch.randn(steps, _batch(options), features, device=DEVICE)
        for precision in PRECISIONS:

            def forward(rnn=rnn, x=x, precision=precision):
                with chosen(precision):
                    return rnn(x)[0]

            def both(rnn=rnn, forward=forward):
                rnn.zero_grad()
                forward()[-1].float().square().mean().backward()

            with torch.no_grad():
                alone, dtype = milliseconds(forward), str(forward().dtype)
            case = [shape, cell, precision]
            say("rival", case=case, forward_ms=alone, both_ms=milliseconds(both), dtype=dtype)


def ours(options, until):
    """The engine that auto takes, beside those of the phase ``rival``."""
    for shape, cell, precision in itertools.product(options.shapes, CELLS, PRECISIONS):
        steps, features, units, layers = _shape(shape, options)
        x = torch.randn(steps, _batch(options), features, device=DEVICE)
        for n in (1, 2, 10, 20):
            if time.monotonic() > until:
                return say("ours", stopped=True)
            rnn = build(cell, features, units, options.engine, n, layers)
            with torch.no_grad():
                alone = milliseconds(lambda rnn=rnn, x=x, precision=precision: forward_of(rnn, x, precision))
            whole = milliseconds(lambda rnn=rnn, x=x, precision=precision: once(rnn, x, precision))
            say("ours", case=[shape, cell, precision, f"1/{n}"], forward_ms=alone, both_ms=whole)
    return None


def profile(options, until):
    """Where a training step spends the device's time."""
    for shape, precision, n in itertools.product(options.shapes, ("float32", "bf16"), (1, 10)):
        steps, features, units, layers = _shape(shape, options)
        x = torch.randn(steps, _batch(options), features, device=DEVICE)
        rnn = build("lstm", features, units, options.engine, n, layers)

        def run(rnn=rnn, x=x, precision=precision):
            return once(rnn, x, precision)

        say("profile", case=[shape, precision, f"1/{n}"], wall_ms=milliseconds(run), **kernels(run))


def tune(options, until):
    """How many weights registers hold, at the shape of MNIST: milliseconds of each kernel."""
    steps, features, units, _ = (6, 2, 5, 1) if options.tiny else SHAPES["mnist"]
    x = torch.randn(steps, _batch(options), features, device=DEVICE)
    before = {way: dict(held) for way, held in cuda_kernels.HELD.items()}
    try:
        for cell, held in itertools.product(CELLS, HELD):
            if time.monotonic() > until:
                return say("tune", stopped=True)
            for way, number in zip("FB", held, strict=True):
                cuda_kernels.HELD[way] = dict.fromkeys(before[way], number)
            cuda_kernels.kernels.cache_clear()
            found = {}
            for n in (1, 10):
                rnn = build(cell, features, units, "cuda", n)
                timed = kernels(lambda rnn=rnn: once(rnn, x, "float32"))["top"]
                found[f"1/{n}"] = {name: ms for name, _, ms in timed if name in ("forward", "backward", "take")}
            say("tune", cell=cell, held=held, **found)
    finally:
        cuda_kernels.HELD.update(before)
        cuda_kernels.kernels.cache_clear()
    return None


def build(cell, features, units, engine, n=None, layers=1, bias=None):
    torch.manual_seed(0)
    rnn = CELLS[cell][0](features, units, layers, engine=engine).to(DEVICE)
    if bias is None:
        use_one_in(rnn, n)
    else:  # the gate depends on the data
        with torch.no_grad():
            rnn.update_weight.mul_(3)
            rnn.update_bias.fill_(bias)
    return rnn


def chosen(precision):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bf16")


def forward_of(rnn, x, precision, every_step=False):
    with chosen(precision):
        return rnn(x, every_step=every_step)


def once(rnn, x, precision, every_step=False):
    rnn.zero_grad()
    out = forward_of(rnn, x, precision, every_step)
    loss = out.output.square().mean() + budget_loss(out, 1e-4)
    loss.backward()
    return out, {name: parameter.grad for name, parameter in rnn.named_parameters()}


def milliseconds(function, repeats=7):
    options = argparse.Namespace(device=DEVICE, repeats=repeats, warmup=2) if DEVICE == "cuda" else ONCE
    return round(timed(function, options), 3)


def kernels(function):
    """Device time of each kernel, ms, and how many there were."""
    from torch.profiler import ProfilerActivity

    function()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (DEVICE == "cuda")
    with torch.profiler.profile(activities=activities) as recorded:
        function()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
    found = [event for event in recorded.key_averages() if event.device_type.name != "CPU"]
    found.sort(key=lambda event: -event.self_device_time_total)
    return {
        "launches": sum(event.count for event in found),
        "device_ms": round(sum(event.self_device_time_total for event in found) / 1e3, 3),
        "top": [[event.key[:50], event.count, round(event.self_device_time_total / 1e3, 4)] for event in found[:14]],
    }


def _shape(name, options):
    return (6, 2, 5, SHAPES[name][3]) if options.tiny else SHAPES[name]


def _batch(options):
    return 3 if options.tiny else 256


PHASES = {
    "env": env, "correct": correct, "same": same, "rival": rival, "ours": ours, "profile": profile, "tune": tune
}  # fmt: skip
PHASE_SECONDS = 150


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def words(text):
        return text.split(",")

    parser.add_argument("--phases", type=words, default=list(PHASES), help=", ".join(PHASES))
    parser.add_argument("--shapes", type=words, default=["mnist", "imdb", "ucf101"], help=", ".join(SHAPES))
    parser.add_argument("--engine", default="auto")
    parser.add_argument(
        "--jobs", type=int, default=min(os.cpu_count() or 1, 12), help="processes that check and compile"
    )
    parser.add_argument("--tiny", action="store_true", help="a few steps of a few units")
    parser.add_argument("--out", type=Path, help="JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
