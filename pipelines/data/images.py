"""Images of a digit, read as MNIST's were made."""

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter, ImageOps

from pipelines.data.doors import opening
from pipelines.data.samples import REMEDY, Source, array_source
from pipelines.errors import SkipRNNError

PIXELS = 2**26  # of an image, at most
BOX = 20  # pixels of a digit's longer side, as in MNIST
FAINT = 0.15  # of the strongest ink: less is the ground's, such as the noise of JPEG
ENOUGH = 2_000  # pixels of its longer side: of larger ones so many are looked at
CONTRAST = 16  # of 255, between ink and ground at least
LARGE = 10 * BOX  # pixels of a digit's longer side while its strokes are measured and thickened
THIN = 2.0  # pixels of a stroke's width in the box: thinner ones are thickened to it, as a pen on paper is not thinner

Grey = npt.NDArray[np.float32]


def image_source(path: Path, side: int) -> Source:
    """The digit in an image as side² bytes, row by row: bright strokes on a dark ground, whatever the image has.

    An image of side x side pixels is taken pixel for pixel. In any other the digit is found, fit into a box of 20 x 20,
    and its centre of mass put into the middle, as MNIST was made.

    Raises:
        SkipRNNError: it is no image, or shows no digit.
    """
    with opening(path, "an image", REMEDY), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is odd about it, its size among that
        with Image.open(path) as image:
            if image.width * image.height > PIXELS:
                raise SkipRNNError(
                    f"{path} has {image.width:,} x {image.height:,} pixels, which are too many for a digit; scale it "
                    "down"
                )
            image.draft(None, (ENOUGH, ENOUGH))  # JPEG is read at a half, a quarter or an eighth, if that is enough
            grey = _grey(image)
    if grey.shape == (side, side):
        pixels = 255 - grey if _border(grey).mean() > 127 else grey
    else:
        ink = _ink(grey)
        if ink is None:
            raise SkipRNNError(f"{path} shows no digit: all of it has nearly one colour; {REMEDY}")
        pixels = _centred(_fit(ink), side)
    values = np.ascontiguousarray(pixels.reshape(-1, 1))
    return array_source(lambda t: values[t], len(values), str(path))


def _grey(image: Image.Image) -> Grey:
    """Brightness from 0 to 255, (height, width); what is transparent is as unlike the rest as can be."""
    image = _scaled_down(ImageOps.exif_transpose(image))
    if image.mode.startswith(("I", "F")):  # more than 8 bits
        values = np.asarray(image, dtype=np.float32)
        if not np.isfinite(values).all():
            raise ValueError("it holds NaN or infinity")
        most = values.max() if image.mode == "F" or values.max() > 65535 else 65535 if values.max() > 255 else 255
        scaled: Grey = np.clip(values / max(most, 1e-9) * 255, 0, 255)
        return scaled
    solid = image.convert("RGBA")
    alpha = np.asarray(solid.getchannel("A"), dtype=np.float32)
    brightness = np.asarray(solid.convert("L"), dtype=np.float32)
    bright = (alpha * brightness).sum() > 127 * alpha.sum() and alpha.min() < 255
    ground = Image.new("RGBA", solid.size, "black" if bright else "white")
    return np.asarray(Image.alpha_composite(ground, solid).convert("L"), dtype=np.float32)


def _scaled_down(image: Image.Image) -> Image.Image:
    """Means of squares of pixels where there are more than are needed: a camera's photo would take gigabytes."""
    factor = -(-max(image.size) // ENOUGH)
    if factor == 1:
        return image
    if image.mode in ("1", "P", "PA") or image.mode.startswith("I;16"):  # numbers of colours, or what has no means
        image = image.convert("I" if image.mode.startswith("I") else "RGBA")
    return image.reduce(factor)


def _border(grey: Grey) -> Grey:
    return np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])


def _ink(grey: Grey) -> Grey | None:
    """How much of a stroke each pixel is, from 0 to 1, without the ground around all of them; None: there are none."""
    ground = np.median(_border(grey))
    difference = ground - grey if 2 * ground > grey.min() + grey.max() else grey - ground
    strongest = difference.max()
    if strongest < CONTRAST:
        return None
    ink: Grey = np.clip(difference / strongest, 0, 1)
    ink[ink < FAINT] = 0
    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _fit(ink: Grey) -> Grey:
    """A digit as bytes in a box of 20 x 20, its shape kept."""
    ink = _resized(ink, LARGE)
    width = round(THIN * max(ink.shape) / BOX - _stroke(ink))
    if width > 0:
        padded = Image.fromarray(np.pad(ink, width))
        ink = np.asarray(padded.filter(ImageFilter.MaxFilter(2 * ((width + 1) // 2) + 1)))
    fitted = _resized(ink, BOX)
    fitted *= 255 / fitted.max()
    return fitted


def _stroke(ink: Grey) -> float:
    """The width of the strokes in pixels: what is inked against what of it lies at an edge, of which there are two."""
    inked = np.pad(ink > 0.5, 1)
    inside = inked[2:, 1:-1] & inked[:-2, 1:-1] & inked[1:-1, 2:] & inked[1:-1, :-2]
    inked = inked[1:-1, 1:-1]
    edges = (inked & ~inside).sum()
    return float(2 * inked.sum() / max(edges, 1))


def _resized(ink: Grey, longer: int) -> Grey:
    height, width = (max(round(length * longer / max(ink.shape)), 1) for length in ink.shape)
    return np.array(Image.fromarray(ink).resize((width, height), Image.Resampling.BILINEAR))


def _centred(digit: Grey, side: int) -> Grey:
    """A digit on a dark ground, its centre of mass in the middle as nearly as whole pixels can have it."""
    pixels = np.zeros((side, side), dtype=np.float32)
    place = []
    for axis, length in enumerate(digit.shape):
        centre = np.average(np.arange(length), weights=digit.sum(axis=1 - axis))
        start = int(np.clip(round(side / 2 - centre), 0, side - length))
        place.append(slice(start, start + length))
    pixels[tuple(place)] = digit
    return pixels
