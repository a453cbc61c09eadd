"""A model's colour: the same wherever it is drawn, and never taken for a sample's."""

from colorsys import rgb_to_hls

import pytest
from matplotlib.colors import to_rgb

from pipelines.runs.colors import AT_RANDOM, OWN, PLAIN, SKIPPING, color_of, shade_of
from pipelines.runs.config import CHOICES, TrainConfig
from pipelines.tasks.drawing import SKIPPED, USED


def hls(color):
    return rgb_to_hls(*to_rgb(color))


def test_no_model_is_red_or_blue():
    models = [*SKIPPING.values(), *OWN, *PLAIN.values(), *AT_RANDOM.values()]
    assert set(SKIPPING) == set(CHOICES["cell"])
    assert len(set(models)) == len(models)
    for color in models:
        hue, _, saturation = hls(color)
        distance = min(min(abs(hue - hls(taken)[0]), 1 - abs(hue - hls(taken)[0])) for taken in (USED, SKIPPED))
        assert distance > 0.055 or saturation < 0.05, color


def test_lambda_is_the_shade_of_a_models_colour():
    shades = [shade_of(TrainConfig(steps=1, lam=lam)) for lam in (0.0, 1e-5, 1e-4, 1e-3)]
    assert [hls(shade)[1] for shade in shades] == sorted((hls(shade)[1] for shade in shades), reverse=True)
    assert len(set(shades)) == 4
    assert all(hls(shade)[0] == pytest.approx(hls(SKIPPING["lstm"])[0], abs=0.02) for shade in shades)
    kept = TrainConfig(steps=1, lam=1e-4, keep=0.1)
    assert shade_of(kept) == color_of(kept) == SKIPPING["lstm"]
    assert color_of(TrainConfig(steps=1, skip=False, lam=0.0, p_skip=0.5)) == AT_RANDOM["lstm"]
    assert color_of(TrainConfig(steps=1, cell="mine.cells:Cell")) in OWN
