"""Sequences whose answer changes on the way, to be learned as one's own: square waves, lamps and sines, as NPZ files.

python examples/labels_of_steps.py
skiprnn gen-data own square.npz          a class a step: is the wave high or low, under the noise?
skiprnn train --data data/square.h5 --lam 1e-3 --out runs/square
skiprnn plot-usage runs/square

skiprnn gen-data own lamps.npz           3 labels a step: which lamps burn? Sequences differ in length.
skiprnn gen-data own sines.npz           2 numbers a sequence: a sine's amplitude and period
"""

import numpy as np


def held(draws: np.random.Generator, count: int, steps: int, shortest: int, longest: int) -> np.ndarray:
    """Zeros and ones (count, steps), each held for shortest to longest steps."""
    values = np.empty((count, steps), dtype=np.int64)
    for row in values:
        t, value = 0, draws.integers(2)
        while t < steps:
            hold = draws.integers(shortest, longest + 1)
            row[t : t + hold] = value
            t, value = t + hold, 1 - value
    return values


def square(draws: np.random.Generator, count: int = 2000, steps: int = 100) -> dict[str, np.ndarray]:
    """x (N, T) is a square wave of 1 and -1 under noise, y (N, T) says which it is."""
    high = held(draws, count, steps, 15, 40)
    return {"x": 2 * high - 1 + draws.normal(0, 0.5, high.shape), "y": np.where(high, "high", "low")}


def lamps(draws: np.random.Generator, count: int = 2000, steps: int = 80) -> dict[str, np.ndarray]:
    """x (N, T, 2) is the light that two sensors see of three lamps, y (N, T, 3) says which of them burn."""
    y = np.stack([held(draws, count, steps, 10, 50) for _ in range(3)], axis=-1)
    x = y @ np.array([[1.0, 0.2], [0.5, 0.9], [0.1, 0.6]]) + draws.normal(0, 0.05, (count, steps, 2))
    lengths = draws.integers(steps // 2, steps + 1, count)
    return {"x": x, "y": y, "lengths": lengths, "names": np.array(["red", "green", "blue"])}


def sines(draws: np.random.Generator, count: int = 2000, steps: int = 60) -> dict[str, np.ndarray]:
    """x (N, T) is a sine, y (N, 2) its amplitude and period."""
    amplitude, period, start = draws.uniform([0.5, 8, 0], [2, 24, 1], (count, 3)).T
    x = amplitude[:, None] * np.sin(2 * np.pi * (np.arange(steps) / period[:, None] + start[:, None]))
    return {"x": x, "y": np.stack([amplitude, period], axis=1), "names": np.array(["amplitude", "period"])}


if __name__ == "__main__":
    for make in (square, lamps, sines):
        np.savez(f"{make.__name__}.npz", **make(np.random.default_rng(0)))
        print(f"wrote {make.__name__}.npz")
