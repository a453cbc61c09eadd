"""Losses, metrics, chance and answers of one's own tasks, against what is computed by hand."""

import math

import pytest
import torch

from pipelines.data.sequences import Sequences
from pipelines.errors import SkipRNNError
from pipelines.tasks import OwnLabels, OwnNumbers, OwnTags
from pipelines.tasks.measures import hits, macro_f1, mean_average_precision
from pipelines.tasks.own import check_names

LENGTHS = torch.tensor([3, 1])


def logit(p):
    return math.log(p / (1 - p))


def test_tags_count_the_steps_of_a_sequence_only():
    task = OwnTags(classes=("a", "b"))
    p = torch.tensor([[0.9, 0.6, 0.2, 0.5], [0.7, 0.1, 0.1, 0.1]])  # of a
    output = torch.stack([p.log(), (1 - p).log()], dim=-1)
    y = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0]])
    expected = (-(math.log(0.9) + math.log(0.4) + math.log(0.8)) / 3 - math.log(0.3)) / 2
    assert task.loss(output, y, LENGTHS).item() == pytest.approx(expected, rel=1e-5)
    garbage = y.clone()
    garbage[0, 3], garbage[1, 1:] = 1, 1
    assert task.loss(output, garbage, LENGTHS) == task.loss(output, y, LENGTHS)
    scores = task.scores(output, y, LENGTHS)
    assert scores.tolist() == [[2, 3], [0, 1]]  # right steps, and steps
    assert task.metric(scores).item() == 2 / 4  # a step, not a sequence
    assert task.chance(y, LENGTHS) == 3 / 4
    assert task.chance(y) == 5 / 8
    # a: 1 hit, 2 false alarms, no miss; b: 1 hit, no false alarm, 2 misses
    assert task.other_metrics(output, y, LENGTHS)["macro F1"] == pytest.approx((2 / 4 + 2 / 4) / 2)
    assert task.metric(task.scores(output, y)).item() == 3 / 8


def test_labels_of_sequences():
    task = OwnLabels(labels=("a", "b"))
    p = torch.tensor([[0.9, 0.2], [0.4, 0.7], [0.8, 0.6]])
    output, y = p.logit(), torch.tensor([[1, 0], [1, 1], [0, 0]], dtype=torch.uint8)
    right = [0.9, 0.8, 0.4, 0.7, 0.2, 0.4]
    assert task.loss(output, y).item() == pytest.approx(-sum(map(math.log, right)) / 6, rel=1e-5)
    # a: 1 hit, 1 false alarm, 1 miss; b: 1 hit, 1 false alarm
    assert task.metric(task.scores(output, y)).item() == pytest.approx((2 / 4 + 2 / 3) / 2)
    others = task.other_metrics(output, y)
    # a in order: 1, 0, 1: (1 + 2/3) / 2; b: 1 first
    assert others["mean average precision"] == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)
    assert others["accuracy of a label"] == pytest.approx(3 / 6)
    assert task.chance(y) == pytest.approx((2 * (2 / 3) / (1 + 2 / 3) + 2 * (1 / 3) / (1 + 1 / 3)) / 2)
    always = task.scores(torch.ones(3, 2), y)
    assert task.metric(always).item() == pytest.approx(task.chance(y))
    said = task.answer(output[2])
    assert said["labels"] == ["a", "b"]
    assert said["probabilities"] == pytest.approx({"a": 0.8, "b": 0.6})
    assert task.answer(torch.tensor([-1.0, -1.0]))["labels"] == []


def test_labels_of_steps():
    task = OwnLabels(labels=("a", "b"), each_step=True)
    p = torch.rand(2, 4, 2, generator=torch.Generator().manual_seed(0))
    y = torch.randint(0, 2, (2, 4, 2), generator=torch.Generator().manual_seed(1)).byte()
    losses = -torch.where(y.bool(), p, 1 - p).log().mean(-1)
    expected = (losses[0, :3].mean() + losses[1, 0]) / 2
    torch.testing.assert_close(task.loss(p.logit(), y, LENGTHS), expected)
    flat, true = torch.cat([p[0, :3], p[1, :1]]).logit(), torch.cat([y[0, :3], y[1, :1]])
    whole = OwnLabels(labels=("a", "b"))  # each step a sequence
    assert task.metric(task.scores(p.logit(), y, LENGTHS)) == whole.metric(whole.scores(flat, true))
    assert task.other_metrics(p.logit(), y, LENGTHS) == whole.other_metrics(flat, true)
    assert task.chance(y, LENGTHS) == whole.chance(true)


@pytest.mark.parametrize("each_step", [False, True])
def test_several_numbers(each_step):
    task = OwnNumbers(names=("a", "b"), target_mean=(1.0, -2.0), target_std=(2.0, 0.5), each_step=each_step)
    output = torch.tensor([[0.0, 0.0], [1.0, 2.0]])  # says (1, -2), (3, -1)
    y = torch.tensor([[3.0, -2.0], [3.0, 0.0]])  # errors (4, 0), (0, 1)
    lengths = None
    if each_step:  # the first sequence has three steps, all alike, the second one, and steps past its end
        output, y, lengths = output[:, None].repeat(1, 4, 1), y[:, None].repeat(1, 4, 1), LENGTHS
        y[1, 1:], y[0, 3] = 1e6, 1e6
    of_loss = [(4 / 4) / 2 / 2, (1 / 0.25) / 2 / 2]
    assert task.loss(output, y, lengths).item() == pytest.approx(sum(of_loss) / 2)
    weights = (3, 1) if each_step else (1, 1)
    mse = (2 * weights[0] + 0.5 * weights[1]) / sum(weights)
    assert task.metric(task.scores(output, y, lengths)).item() == pytest.approx(mse)
    others = task.other_metrics(output, y, lengths)
    assert others == pytest.approx({"MSE of a": 4 * weights[0] / sum(weights), "MSE of b": weights[1] / sum(weights)})
    variance = weights[0] * weights[1] / sum(weights) ** 2 * 2**2 / 2  # of b, which takes two values; a takes one
    assert task.chance(y, lengths) == pytest.approx(variance)
    assert task.answer(torch.tensor([1.0, 2.0])) == {"a": 3.0, "b": -1.0}


def test_a_number_a_step():
    task = OwnNumbers(each_step=True)
    output, y = torch.tensor([[[1.0], [2.0], [9.0]]]), torch.tensor([[0.0, 4.0, 0.0]])
    lengths = torch.tensor([2])
    assert task.loss(output, y, lengths).item() == (1 + 4) / 2 / 2
    assert task.metric(task.scores(output, y, lengths)).item() == 2.5
    assert task.chance(y, lengths) == 4
    assert task.other_metrics(output, y, lengths) == {}


def test_f1_leaves_out_labels_that_neither_are_nor_are_said():
    said, true = torch.tensor([[1, 0, 1], [0, 0, 0]]), torch.tensor([[1, 0, 0], [1, 0, 0]])
    counts = hits(said, true).sum(0)
    assert counts.tolist() == [1, 0, 0, 0, 0, 1, 1, 0, 0]
    assert macro_f1(counts).item() == pytest.approx((2 / 3 + 0) / 2)
    assert macro_f1(torch.zeros(6)).item() == 0


def test_average_precision_takes_equal_scores_together():
    scores, true = torch.tensor([[0.9], [0.5], [0.5], [0.1]]), torch.tensor([[0], [1], [0], [1]])
    # the first threshold finds none, the second 1 of 3, the third 2 of 4
    assert mean_average_precision(scores, true) == pytest.approx(0.5 * (1 / 3) + 0.5 * (2 / 4))
    assert mean_average_precision(scores.repeat(1, 2), torch.cat([true, 0 * true], 1)) == pytest.approx(5 / 12)
    assert math.isnan(mean_average_precision(scores, 0 * true))


def test_what_the_tasks_refuse():
    x = torch.zeros(2, 4, 1)
    with pytest.raises(SkipRNNError, match="y must hold bytes of 0 and 1"):
        OwnLabels().check(Sequences(x, torch.full((2, 1), 2, dtype=torch.uint8)))
    with pytest.raises(SkipRNNError, match="y must hold classes from 0 to 1"):
        OwnTags().check(Sequences(x, torch.full((2, 4), 2)))
    with pytest.raises(SkipRNNError, match="y must hold floats"):
        OwnNumbers().check(Sequences(x, torch.zeros(2, dtype=torch.int64)))
    with pytest.raises(SkipRNNError, match="a number for each of the 2 names"):
        OwnNumbers(names=("a", "b"))
    with pytest.raises(SkipRNNError, match="names must be one name or more, all different"):
        check_names(["a", "a"], "names")


def test_files_of_before_hold_one_number_a_sequence():
    before = {"features": 1, "mean": "[0.5]", "std": "[2.0]", "target_mean": 1.5, "target_std": 2.5}
    task = OwnNumbers.from_attributes(before)
    assert task == OwnNumbers(mean=(0.5,), std=(2.0,), target_mean=(1.5,), target_std=(2.5,))
    assert OwnNumbers.from_attributes(task.parameters()) == task
