"""A sensor that is read only when the network needs it, and may sleep in between.

python examples/stream_sensor.py            a network with random weights, on a sensor of two numbers
python examples/stream_sensor.py RUN        what `skiprnn train` made, such as of the recordings in docs/data.md
"""

import math
import random
import sys

import torch

import skiprnn
from skiprnn.gate import NEVER

SAMPLES = 200


def read_sensor(t: int, size: int) -> list[float]:
    """Sample t, raw as it would come from the device."""
    return [math.sin(0.1 * t + k) + random.gauss(0, 0.1) for k in range(size)]


def main(run: str | None = None) -> None:
    if run is None:
        torch.manual_seed(0)
        rnn = skiprnn.SkipLSTM(2, 16, update_bias=-1.0).eval()
        stream = skiprnn.Stream(rnn, torch.nn.Linear(16, 1))
        size = 2
    else:
        model = skiprnn.load(run)
        stream, size = model.stream(), model.rnn.input_size

    while stream.position < SAMPLES:
        asleep = min(stream.skip_next, SAMPLES - stream.position)
        stream.advance(asleep)  # sleep for so many sample periods; NEVER: no sample is needed any more
        if stream.position == SAMPLES:
            break
        t = stream.position
        stream.push(read_sensor(t, size))
        until = "the end" if stream.skip_next == NEVER else t + 1 + stream.skip_next
        print(f"{t:>4}  {[round(number, 3) for number in stream.prediction.tolist()]}, until {until}")
    print(f"read {stream.used} of {stream.position} samples")


if __name__ == "__main__":
    main(*sys.argv[1:])
