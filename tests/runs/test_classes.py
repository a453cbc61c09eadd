"""Results of each class against what can be counted by hand, and the figure of confusions."""

import pytest
import torch
from torch.nn.functional import one_hot

from pipelines.data.sequences import Sequences
from pipelines.errors import SkipRNNError
from pipelines.runs import evaluation, figures
from pipelines.runs.classes import OfClass, by_class
from pipelines.runs.config import TrainConfig
from pipelines.runs.figures import check_confusion, plot_confusion
from pipelines.tasks import OwnClasses, OwnTags

NAMES = ("a", "b", "c")


def test_of_sequences():
    y, said = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 0, 1, 1, 1])
    sequences = Sequences(torch.zeros(5, 10, 1), y, torch.tensor([10, 10, 5, 4, 8]))
    a, b, c = by_class(OwnClasses(classes=NAMES), one_hot(said, 3), torch.tensor([5, 4, 1, 3, 3]), sequences)
    assert (a.name, a.precision, a.recall, a.support) == ("a", 1.0, pytest.approx(2 / 3), 3)
    assert (a.used_mean, a.used_percent, a.said) == (pytest.approx(10 / 3), pytest.approx(40.0), {"a": 2, "b": 1})
    assert (b.precision, b.recall, b.used_mean, b.used_percent) == (pytest.approx(2 / 3), 1.0, 3.0, 50.0)
    assert c == OfClass("c", None, None, 0, None, None, {})


def test_of_steps_past_ends_do_not_count():
    y, said = torch.tensor([[0, 1, 1], [2, 0, 0]]), torch.tensor([[0, 1, 0], [2, 1, 1]])
    gate = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    sequences = Sequences(torch.zeros(2, 3, 1), y, torch.tensor([3, 1]))
    a, b, c = by_class(OwnTags(classes=NAMES), one_hot(said, 3), gate, sequences)
    assert [of.support for of in (a, b, c)] == [1, 2, 1]
    assert [of.used_percent for of in (a, b, c)] == [100.0, 50.0, 100.0]
    assert (b.recall, b.used_mean, b.said) == (0.5, None, {"a": 1, "b": 1})


@pytest.mark.parametrize("count", [2, 101])
def test_every_class_has_its_name_in_the_figure(tmp_path, monkeypatch, count):
    kept = []
    monkeypatch.setattr(figures, "save", lambda figure, out, **k: kept.append(figure))
    names = [f"class {k}" for k in range(count)]
    found = [OfClass(name, 1.0, 1.0, 4, 1.0, 1.0, {name: 3, names[0]: 1}) for name in names]
    plot_confusion(found, tmp_path / "c.png", "title")
    axis = kept[0].axes[0]
    assert axis.images[0].norm(0.25) == 0.25
    assert [label.get_text() for label in axis.get_yticklabels()] == names
    assert axis.images[0].get_array()[1].tolist()[:3] == ([0.25, 0.75] if count == 2 else [0.25, 0.75, 0])
    assert [text.get_text() for text in axis.texts] == (["1", "1", "3"] if count == 2 else [])
    (label,) = {label.get_fontsize() for label in axis.get_yticklabels()}
    assert 4 <= label <= 72 * 15 / count  # points: large enough to be read, and lower than a row


def test_what_has_no_classes_has_no_confusions(make_run, tmp_path):
    run = make_run(trained=False)
    with pytest.raises(SkipRNNError, match="of the task adding, which has no single class to confuse; drop"):
        check_confusion(run, tmp_path / "c.png", overwrite=False)
    with pytest.raises(SkipRNNError, match=r"must end in \.png, \.pdf, \.svg"):
        check_confusion(run, tmp_path / "c.html", overwrite=False)


@pytest.mark.parametrize(
    ("options", "percent", "seconds", "cuda", "reason"),
    [
        ({}, 10.0, 0.9, False, None),
        ({}, 10.0, 1.04, False, None),  # which may be chance
        ({"skip": False, "lam": 0.0}, 100.0, 1.1, False, None),
        ({}, 95.0, 1.1, False, "95 % of the samples are used, and deciding costs more than the few others save"),
        ({}, 10.0, 1.1, True, "with 6 units a step is so short on a GPU that starting it, not computing it, takes"),
        ({"cell": "ln-gru"}, 10.0, 1.1, False, "the cell ln-gru has no compiled code"),
        ({}, 10.0, 1.1, False, "with 6 units a step is so cheap that deciding whether to make it costs as much"),
    ],
)
def test_why_skipping_is_not_faster(monkeypatch, options, percent, seconds, cuda, reason):
    monkeypatch.setattr(evaluation.compiled, "LIBRARY", object())
    config = TrainConfig(steps=1, hidden_size=6, **options)
    said = evaluation._not_faster(config, percent, seconds, 1.0, cuda)
    assert said is None if reason is None else said.startswith(reason)
