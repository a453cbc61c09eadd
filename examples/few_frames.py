"""A video of which few frames are looked at: the convolutional network runs on those that the Skip LSTM asks for.

python examples/few_frames.py VIDEO

Weights are random here, so what it says means nothing; which frames it leaves out shows how. With trained weights,
`skiprnn predict` does this: see docs/video.md.
"""

import sys

import cv2
import torch
import torchvision

from skiprnn import SkipLSTM, Stream
from skiprnn.gate import NEVER

CLASSES = 10


def features() -> torch.nn.Module:
    """Frames (B, 3, 224, 224) to (B, 512)."""
    network = torchvision.models.resnet18(weights=None).eval()
    network.fc = torch.nn.Identity()
    return network


class Frames:
    """The frames of a file, in order; those in between are passed over without being converted."""

    def __init__(self, path: str) -> None:
        self._capture = cv2.VideoCapture(path)
        self.passed = 0

    def __call__(self, t: int):
        """Frame t, (H, W, 3) of blue, green and red; None past the end."""
        while self.passed <= t:
            if not self._capture.grab():
                return None
            self.passed += 1
        return self._capture.retrieve()[1]


def main(path: str) -> None:
    torch.manual_seed(0)
    network, head = features(), torch.nn.Linear(64, CLASSES)
    rnn = SkipLSTM(512, 64, update_bias=-1.5).eval()

    @torch.no_grad()
    def look(frame) -> torch.Tensor:
        picture = torch.from_numpy(cv2.resize(frame, (224, 224))).flip(2).permute(2, 0, 1).float() / 255
        return network(picture[None])[0]

    frames, stream = Frames(path), Stream(rnn, head, embed=look)
    for t, output in stream.pull(frames):
        until = "the end" if stream.skip_next == NEVER else f"frame {t + 1 + stream.skip_next}"
        print(f"frame {t}: class {int(output.argmax())}, until {until}")
    print(f"looked at {stream.used} of {frames.passed} frames")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
