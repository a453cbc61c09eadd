"""One colour a model, the same in every figure, and never the red and blue of used and skipped samples."""

import math
from colorsys import hls_to_rgb, rgb_to_hls
from zlib import crc32

from matplotlib.colors import to_hex, to_rgb

from pipelines.runs.config import TrainConfig

SKIPPING = {
    "lstm": "#1b9e77", "gru": "#8e4fb0", "rnn": "#a6761d", "rnn-relu": "#7d8f1a", "ln-lstm": "#e08a00",
    "ln-gru": "#c2478f",
}  # fmt: skip
OWN = ("#4f8a10", "#6b4d8a", "#b35c00", "#8f7d5b")  # of cells that are not the project's
PLAIN = {"lstm": "#222222", "gru": "#8a8a8a"}
AT_RANDOM = {"lstm": "#7a5c3e", "gru": "#c9a66b"}
FREE, LIGHTEST, DARKEST = 0.76, 0.58, 0.18  # lightness where λ is 0, at most 1e-7, and at least 1e-2


def color_of(config: TrainConfig) -> str:
    """The colour of a model, whatever its λ."""
    if config.skip:
        return SKIPPING.get(config.cell) or OWN[crc32(config.cell.encode()) % len(OWN)]
    return (PLAIN if config.p_skip is None else AT_RANDOM)[config.cell]


def shade_of(config: TrainConfig) -> str:
    """The model's colour, the darker the larger its λ is; where λ is found while training, the colour itself."""
    if not config.skip or config.keep is not None or config.target_usage is not None:
        return color_of(config)
    place = (math.log10(config.lam) + 7) / 5 if config.lam else 0
    lightness = LIGHTEST + min(max(place, 0), 1) * (DARKEST - LIGHTEST) if config.lam else FREE
    hue, _, saturation = rgb_to_hls(*to_rgb(color_of(config)))
    return to_hex(hls_to_rgb(hue, lightness, saturation))
