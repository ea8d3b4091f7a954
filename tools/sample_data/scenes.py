"""Scenes of handwritten digits pasted on crops of photographs."""

import colorsys
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


@dataclass(frozen=True)
class Split:
    """Names and sources of a split."""

    name: str
    ade20k_name: str
    coco_name: str
    photos: dict[str, str]  # 'package/file': licence, as stated by the package
    digits: slice  # range in scikit-learn's data set


# The splits have different photographs and different handwritten digits.
SPLITS = (
    Split(
        name='train',
        ade20k_name='training',
        coco_name='train2017',
        photos={
            'skimage.data/astronaut.png': 'NASA, public domain',
            'skimage.data/brick.png': 'CC0Textures, CC0',
            'skimage.data/coffee.png': 'Rachel Michetti, CC0',
            'skimage.data/gravel.png': 'CC0Textures, CC0',
            'sklearn.datasets.images/china.jpg': 'danielbuechele, CC BY 2.0',
            'sklearn.datasets.images/flower.jpg': 'vultilion, CC BY 2.0',
        },
        digits=slice(0, 1400),
    ),
    Split(
        name='val',
        ade20k_name='validation',
        coco_name='val2017',
        photos={
            'skimage.data/chelsea.png': 'Stefan van der Walt, CC0',
            'skimage.data/grass.png': 'linolafett, CC0',
            'skimage.data/rocket.jpg': 'SpaceX, public domain',
        },
        digits=slice(1400, None),
    ),
)

SIDES = (128, 224)  # side lengths of a scene, in pixels
DIGIT_SIZES = (28, 110)  # height of a digit before rotation, in pixels
NUM_DIGITS = (2, 6)  # in a scene that is not empty; fewer if there is no room
# Each digit has its own hue, 0.1 apart, so that minutes of training show something. The hues overlap (this is
# their standard deviation), so that neighbouring digits can only be told apart by shape.
HUE_SPREAD = 0.05
MAX_ROTATION = 25  # degrees; 6 and 9 stay distinct
EMPTY_SHARE = 0.1  # share of scenes without digits
ALIGNED_SHARE = 0.1  # share of scenes whose sides are divisible by 32, the stride of most backbones
PLACEMENT_ATTEMPTS = 10
MIN_VISIBLE_SHARE = 0.85  # of a digit that others cover, so that it stays readable
MIN_VISIBLE_PIXELS = 60
INK_LEVEL = 6  # of 0 to 16 in load_digits; less than half, for thick strokes
SUPERSAMPLING = 4

# Labels as in ADE20K: 0 is ignored, because the data sets use `reduce_zero_label`.
UNLABELLED, BACKGROUND, FIRST_DIGIT = 0, 1, 2


@dataclass
class Scene:
    image: np.ndarray  # (H, W, 3), uint8
    labels: np.ndarray  # (H, W), uint8, as in ADE20K
    digits: list[int]
    masks: list[np.ndarray]  # (H, W), bool: the visible pixels of each digit


def load_photo(name: str) -> Image.Image:
    package, file_name = name.split('/')
    # Functions like `skimage.data.astronaut()` would download a missing file.
    path = files(package) / file_name
    if not path.is_file():
        raise SystemExit(
            f'{path} does not exist: the installed version of {package.split(".")[0]} does not contain this '
            'photograph. Install another version.'
        )
    with path.open('rb') as file:
        return Image.open(file).convert('RGB')


def sample_digits(split: Split, rng: np.random.Generator) -> Iterator[tuple[int, np.ndarray]]:
    """Yield digits and their 8x8 pixels, ten different ones in each round so that small data are balanced."""
    data = load_digits()
    pixels, digits = data.images[split.digits], data.target[split.digits]
    while True:
        for digit in rng.permutation(10).tolist():
            yield digit, rng.choice(pixels[digits == digit])


def render_digit(pixels: np.ndarray, size: float, angle: float) -> np.ndarray:
    """Return which share (0 to 1) of each pixel the rotated digit covers, cropped to the digit."""
    padded = np.pad(pixels, 1).astype(np.float32)  # so that strokes at the border are round
    side = round(size * SUPERSAMPLING * len(padded) / len(pixels))
    ink = Image.fromarray(padded).resize((side, side), Image.Resampling.BICUBIC)
    ink = ink.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    coverage = Image.fromarray(np.asarray(ink) > INK_LEVEL).convert('L').reduce(SUPERSAMPLING)
    return np.asarray(coverage.crop(coverage.getbbox())) / np.float32(255)


def crop_photo(photo: Image.Image, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    zoom = rng.uniform(0.7, min(1.5, photo.width / width, photo.height / height))
    crop_width, crop_height = int(zoom * width), int(zoom * height)
    left = int(rng.integers(photo.width - crop_width + 1))
    top = int(rng.integers(photo.height - crop_height + 1))
    box = (left, top, left + crop_width, top + crop_height)
    crop = photo.resize((width, height), Image.Resampling.BICUBIC, box=box)
    return np.asarray(crop, dtype=np.float32)


def contrasting_colour(background: np.ndarray, digit: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a few saturated colours near the digit's hue and return the one with the most contrast."""
    saturations, values = rng.uniform((0.7, 0.6), 1, size=(6, 2)).T
    hues = rng.normal(digit / 10, HUE_SPREAD, size=6) % 1
    colours = 255 * np.array(list(map(colorsys.hsv_to_rgb, hues, saturations, values)))
    distances = np.linalg.norm(colours[:, None] - background, axis=2)
    # A low quantile instead of the mean: the digit has to differ from nearly all pixels that it covers.
    return colours[np.quantile(distances, 0.1, axis=1).argmax()].astype(np.float32)


def place_digit(
    inside: np.ndarray, owners: np.ndarray, areas: list[int], rng: np.random.Generator
) -> tuple[slice, slice] | None:
    """Return a window for a digit in which all digits stay readable, or None if no attempt finds one.

    Args:
        inside: (h, w), bool, the digit.
        owners: (H, W), the number of the visible digit at each pixel, from 1, or 0.
        areas: Number of pixels of each digit that was placed before.
        rng: Source of the positions.
    """
    for _ in range(PLACEMENT_ATTEMPTS):
        top, left = rng.integers(np.subtract(owners.shape, inside.shape), endpoint=True)
        window = np.s_[top : top + inside.shape[0], left : left + inside.shape[1]]
        candidate = owners.copy()
        candidate[window][inside] = len(areas) + 1
        visible = np.bincount(candidate.flat)[1:]
        total = np.array([*areas, inside.sum()])
        if (visible >= np.maximum(MIN_VISIBLE_PIXELS, MIN_VISIBLE_SHARE * total)).all():
            return window
    return None


def make_scene(
    photos: list[Image.Image],
    digit_source: Iterator[tuple[int, np.ndarray]],
    rng: np.random.Generator,
) -> Scene:
    sides = rng.integers(*SIDES, size=2, endpoint=True)
    if rng.random() < ALIGNED_SHARE:
        sides = sides // 32 * 32
    width, height = sides.tolist()
    image = crop_photo(photos[rng.integers(len(photos))], width, height, rng)
    labels = np.full((height, width), BACKGROUND, np.uint8)
    owners = np.zeros((height, width), np.uint8)
    digits, areas = [], []

    num_digits = 0 if rng.random() < EMPTY_SHARE else rng.integers(*NUM_DIGITS, endpoint=True)
    # A digit of up to 0.7 of the shorter side fits into the scene at any rotation.
    max_size = min(DIGIT_SIZES[1], 0.7 * min(width, height))
    for digit, pixels in itertools.islice(digit_source, int(num_digits)):
        size = rng.uniform(DIGIT_SIZES[0] ** 2, max_size**2) ** 0.5  # uniform in area
        coverage = render_digit(pixels, size, rng.uniform(-MAX_ROTATION, MAX_ROTATION))
        inside = coverage >= 0.5
        window = place_digit(inside, owners, areas, rng)
        if window is None:
            continue
        digits.append(digit)
        areas.append(inside.sum())
        owners[window][inside] = len(digits)
        # Pixels on the edge mix the digit with what it covers, so that they have no label.
        labels[window][coverage > 0] = UNLABELLED
        labels[window][coverage == 1] = FIRST_DIGIT + digit
        colour = contrasting_colour(image[window][inside], digit, rng)
        opacity = rng.uniform(0.85, 1) * coverage[..., None]
        image[window] += opacity * (colour - image[window])

    masks = [owners == i for i in range(1, len(digits) + 1)]
    return Scene(image.round().astype(np.uint8), labels, digits, masks)
