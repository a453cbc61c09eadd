"""The usage figure of videos: every frame, the used ones in red borders, the skipped ones in blue."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from pipelines.errors import SkipRNNError
from pipelines.video.decode import Frame, Sampling, VideoReader

WIDTH = 64  # pixels of a frame on the sheet
BORDER = 3  # pixels around it
GAP = 2  # pixels between frames
COLUMNS = 25  # frames
FADED = 0.45  # of a skipped frame's contrast


@dataclass(frozen=True)
class Sheet:
    """A video and what a model made of it."""

    path: Path
    heading: str
    used: list[bool]  # of each frame


def contact_sheets(sheets: list[Sheet], sampling: Sampling, title: str, used: str, skipped: str) -> Figure:
    """Draw videos one under the other.

    Args:
        sheets: the videos.
        sampling: which of their frames the model was given.
        title: of the figure.
        used, skipped: colours.

    Raises:
        SkipRNNError: a video cannot be read.
    """
    colors = [(255 * np.array(to_rgb(color))).astype(np.uint8) for color in (skipped, used)]
    pictures = [_sheet(sheet, sampling, colors) for sheet in sheets]
    heights = [len(picture) for picture in pictures]
    width = pictures[0].shape[1]
    inches = 11.0
    height = inches * (sum(heights) + 60 * len(sheets)) / width + 0.7
    figure = Figure(figsize=(inches, height), layout="constrained")
    axes = figure.subplots(len(sheets), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axis, picture, sheet in zip(axes, pictures, sheets, strict=True):
        axis.imshow(picture, interpolation="antialiased")
        axis.set_axis_off()
        axis.set_title(sheet.heading, fontsize=9, loc="left", pad=3)
    handles = [Patch(color=used, label="used"), Patch(color=skipped, label="skipped")]
    figure.legend(handles=handles, title=title, loc="outside upper center", ncols=2, frameon=False)
    return figure


def _sheet(sheet: Sheet, sampling: Sampling, colors: list[Frame]) -> Frame:
    frames = _thumbnails(sheet, sampling)
    if len(frames) < len(sheet.used):
        raise SkipRNNError(
            f"{sheet.path} has {len(frames)} frames, where its features are of {len(sheet.used)}; it was changed since"
        )
    height, width, _ = frames[0].shape
    cell_height, cell_width = height + 2 * BORDER + GAP, width + 2 * BORDER + GAP
    rows = math.ceil(len(frames) / COLUMNS)
    picture = np.full((rows * cell_height, COLUMNS * cell_width, 3), 255, np.uint8)
    for number, (small, on) in enumerate(zip(frames, sheet.used, strict=True)):
        row, column = divmod(number, COLUMNS)
        cell = picture[row * cell_height :, column * cell_width :][: height + 2 * BORDER, : width + 2 * BORDER]
        cell[:] = colors[on]
        shown = small if on else (255 - (255 - small.astype(np.float32)) * FADED).astype(np.uint8)
        cell[BORDER:-BORDER, BORDER:-BORDER] = shown
    return picture


def _thumbnails(sheet: Sheet, sampling: Sampling) -> list[Frame]:
    small: list[Frame] = []
    last = None
    for (_, frame), _ in zip(VideoReader(sheet.path, sampling), sheet.used, strict=False):
        if frame is not last:
            high, wide = frame.shape[:2]
            size = WIDTH, max(1, min(4 * WIDTH, round(WIDTH * high / wide)))
            thumbnail = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR))
            last = frame
        small.append(thumbnail)
    return small
