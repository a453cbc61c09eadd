"""A training script whose nn.LSTM became SkipLSTM: the four changed lines carry the old one as a comment, one is new.

python examples/replace_lstm.py [STEPS]

A class a sequence: the sign of the mean of 40 noisy samples, of which a few are enough to tell.
"""

import sys

import torch
from torch import nn

from skiprnn import SkipLSTM, budget_loss, used_samples

COST_PER_SAMPLE = 1e-2  # λ: the loss of using one sample


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = SkipLSTM(1, 32, batch_first=True)  # nn.LSTM(1, 32, batch_first=True)
        self.head = nn.Linear(32, 2)

    def forward(self, x):
        out = self.rnn(x)  # output, (h, c) = self.rnn(x)
        return self.head(out.output[:, -1]), out  # return self.head(output[:, -1])


def batch(size: int = 64, steps: int = 40):
    y = torch.randint(2, (size,))
    return (2 * y - 1)[:, None, None] * 0.5 + torch.randn(size, steps, 1), y


def main(steps: int = 200) -> None:
    torch.manual_seed(0)
    model = Classifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(steps):
        x, y = batch()
        prediction, out = model(x)  # prediction = model(x)
        loss = nn.functional.cross_entropy(prediction, y)
        loss = loss + budget_loss(out, COST_PER_SAMPLE)  # new
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            right = (prediction.argmax(1) == y).float().mean()
            print(f"step {step}: accuracy {right:.2f}, {used_samples(out).mean():.1f} of {x.shape[1]} samples used")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
