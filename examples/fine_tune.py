"""A trained model put to another question: its recurrent network under a new head.

python examples/fine_tune.py adding-lstm [STEPS]    a model that comes with skiprnn
python examples/fine_tune.py runs/NAME [STEPS]      or a run of your own on the adding task

The model says the sum of two marked values; the new question is whether that sum is positive.
"""

import sys

import torch
from torch import nn

import skiprnn
from pipelines.seeds import generator
from pipelines.tasks import Adding
from skiprnn.answers import Classes


def main(run: str, steps: int = 300) -> None:
    model = skiprnn.load(run)
    model.head = nn.Linear(model.rnn.hidden_size, 2)
    model.answers = Classes(["negative", "positive"])
    task, draws = Adding(length=20), generator(0, "fine-tuning")

    # The head learns from the start, what is below it at a tenth of the rate.
    optimizer = torch.optim.Adam(
        [{"params": model.head.parameters()}, {"params": model.rnn.parameters(), "lr": 3e-4}], lr=3e-3
    )
    model.train()
    for step in range(steps):
        batch = task.sample(64, draws)  # raw samples: what training normalised, the model normalises
        output, update_gate = model(batch.x)
        loss = nn.functional.cross_entropy(output, (batch.y > 0).long())
        loss = loss + skiprnn.budget_loss(update_gate, 1e-5, batch_first=True)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    test = task.sample(200, draws)
    said = model.predict(test.x)
    right = [(predicted.value == "positive") == (y > 0) for predicted, y in zip(said, test.y.tolist(), strict=True)]
    used = sum(int(predicted.used.sum()) for predicted in said) / len(said)
    print(f"accuracy {sum(right) / len(right):.2f}, {used:.1f} of {test.x.shape[1]} samples used")
    torch.save(model.state_dict(), "fine-tuned.pt")
    print("wrote fine-tuned.pt")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1], *map(int, sys.argv[2:]))
