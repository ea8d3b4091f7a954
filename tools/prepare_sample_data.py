"""Write a small data set of real pictures for trying out training and testing on a CPU.

Handwritten digits (scikit-learn) are pasted on crops of photographs (scikit-image, scikit-learn).
The same scenes are written in the layouts of ADE20K (semantic segmentation) and COCO (detection,
instance and panoptic segmentation: digits are things, photographs stuff), and crops of their digits
in the layout of ImageNet (classification).

Everything comes out of the installed packages: nothing is downloaded. The same arguments give the
same files, byte for byte.
"""

import argparse
import colorsys
import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask
from rich.progress import track
from sklearn.datasets import load_digits


@dataclass(frozen=True)
class Split:
    """What one split is made of."""

    name: str
    ade20k_name: str
    coco_name: str
    photos: dict[str, str]  # 'package/file' to its licence, as stated by the package
    digits: slice  # of scikit-learn's


# The splits share neither photographs nor handwritten digits.
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

SIDES = (128, 224)  # of a scene, in pixels
DIGIT_SIZES = (28, 110)  # height of an upright digit, in pixels
NUM_DIGITS = (2, 6)  # in a scene that is not empty; fewer where there is no room
# Colour is a hint, so that minutes of training show something; between neighbours the shape has to decide.
HUE_SPREAD = 0.05  # standard deviation; the digits' hues are 0.1 apart
MAX_ROTATION = 25  # degrees, so that 6 and 9 stay distinct
EMPTY_SHARE = 0.1  # of scenes without digits
ALIGNED_SHARE = 0.1  # of scenes with sides divisible by 32, the stride of most backbones
PLACEMENT_ATTEMPTS = 10
MIN_VISIBLE_SHARE = 0.85  # a digit must stay readable under the ones pasted over it
MIN_VISIBLE_PIXELS = 60
INK_LEVEL = 6  # of the 0..16 of load_digits: below half makes strokes thick
SUPERSAMPLING = 4
CROP_MARGIN = 1.3  # side of a classification crop over the longer side of the digit's box

# Labels of the ADE20K layout. As there, 0 is ignored: the data sets use `reduce_zero_label`.
UNLABELLED, BACKGROUND, FIRST_DIGIT = 0, 1, 2

DIGITS = [dict(id=digit + 1, name=str(digit), supercategory='digit') for digit in range(10)]
PHOTOGRAPH = dict(id=11, name='photograph', supercategory='photograph')  # of panoptic segmentation
VOID = 0  # the id of pixels without a panoptic label

PREVIEW_SCENES = 4  # of each split
PREVIEW_SCALE = 2
CHECKSUMS = 'SHA256SUMS'


@dataclass
class Scene:
    image: np.ndarray  # (H, W, 3), uint8
    labels: np.ndarray  # (H, W), uint8, as in the ADE20K layout
    digits: list[int]
    masks: list[np.ndarray]  # (H, W), bool: the visible pixels of each digit


def load_photo(name: str) -> Image.Image:
    package, file_name = name.split('/')
    # Not by `skimage.data.astronaut()` and the like, which download what is missing.
    path = files(package) / file_name
    if not path.is_file():
        raise SystemExit(
            f'{path} does not exist: the installed version of {package.split(".")[0]} does not '
            'ship this photograph. Please install another version.'
        )
    with path.open('rb') as file:
        return Image.open(file).convert('RGB')


def sample_digits(split: Split, rng: np.random.Generator) -> Iterator[tuple[int, np.ndarray]]:
    """Yield digits and their 8x8 pixels, all ten in each round to keep small sets balanced."""
    data = load_digits()
    pixels, digits = data.images[split.digits], data.target[split.digits]
    while True:
        for digit in rng.permutation(10).tolist():
            yield digit, rng.choice(pixels[digits == digit])


def render_digit(pixels: np.ndarray, size: float, angle: float) -> np.ndarray:
    """Return the share (0 to 1) of each pixel that the rotated digit covers, without margins."""
    padded = np.pad(pixels, 1).astype(np.float32)  # lets strokes on the border be round
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
    """Return the one of a few saturated colours, near the digit's hue, that stands out best."""
    saturations, values = rng.uniform((0.7, 0.6), 1, size=(6, 2)).T
    hues = rng.normal(digit / 10, HUE_SPREAD, size=6) % 1
    colours = 255 * np.array(list(map(colorsys.hsv_to_rgb, hues, saturations, values)))
    distances = np.linalg.norm(colours[:, None] - background, axis=2)
    # Not the mean: a colour has to stand out from nearly all of what the digit covers.
    return colours[np.quantile(distances, 0.1, axis=1).argmax()].astype(np.float32)


def place_digit(
    inside: np.ndarray, owners: np.ndarray, areas: list[int], rng: np.random.Generator
) -> tuple[slice, slice] | None:
    """Find a window for a digit where no digit is hidden too much, or None."""
    for _ in range(PLACEMENT_ATTEMPTS):
        top, left = rng.integers(np.subtract(owners.shape, inside.shape), endpoint=True)
        window = np.s_[top : top + inside.shape[0], left : left + inside.shape[1]]
        candidate = owners.copy()
        candidate[window][inside] = len(areas) + 1
        visible = np.bincount(candidate.flat)[1:]
        full = np.array([*areas, inside.sum()])
        if (visible >= np.maximum(MIN_VISIBLE_PIXELS, MIN_VISIBLE_SHARE * full)).all():
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
    owners = np.zeros((height, width), np.uint8)  # i where the i-th digit is visible, from 1
    digits, areas = [], []

    num_digits = 0 if rng.random() < EMPTY_SHARE else rng.integers(*NUM_DIGITS, endpoint=True)
    # Up to 0.7 of the shorter side, a digit fits in the scene at any allowed rotation.
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
        # Pixels on the edge are a mixture of the digit and what it covers: no label fits them.
        labels[window][coverage > 0] = UNLABELLED
        labels[window][coverage == 1] = FIRST_DIGIT + digit
        colour = contrasting_colour(image[window][inside], digit, rng)
        opacity = rng.uniform(0.85, 1) * coverage[..., None]
        image[window] += opacity * (colour - image[window])

    masks = [owners == i for i in range(1, len(digits) + 1)]
    return Scene(image.round().astype(np.uint8), labels, digits, masks)


def save_jpeg(image: np.ndarray, path: Path) -> None:
    # Without chroma subsampling, which would blur the thin coloured strokes.
    Image.fromarray(image).save(path, quality=92, subsampling=0)


def link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # not every file system has hard links
        shutil.copyfile(source, target)


def crop_square(image: np.ndarray, box: list[float]) -> np.ndarray:
    """Crop a square round the box with a margin; at the image's border, what there is of it."""
    x, y, width, height = box
    half = CROP_MARGIN * max(width, height) / 2
    left, top = round(x + width / 2 - half), round(y + height / 2 - half)
    right, bottom = round(x + width / 2 + half), round(y + height / 2 + half)
    return image[max(top, 0) : bottom, max(left, 0) : right]


def encode(mask: np.ndarray) -> dict:
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))


def measure(rle: dict) -> dict:
    """What annotations say of a mask, of an object or of a segment."""
    return dict(area=int(coco_mask.area(rle)), bbox=coco_mask.toBbox(rle).tolist(), iscrowd=0)


def coco_annotation(annotation_id: int, image_id: int, digit: int, mask: np.ndarray) -> dict:
    rle = encode(mask)
    return dict(
        id=annotation_id,
        image_id=image_id,
        category_id=DIGITS[digit]['id'],
        segmentation=dict(size=rle['size'], counts=rle['counts'].decode()),
        **measure(rle),
    )


def panoptic_annotation(image_id: int, scene: Scene, path: Path) -> dict:
    """Write a scene's segments as colours of a PNG, and return their annotation."""
    segments = [(PHOTOGRAPH['id'], scene.labels == BACKGROUND)]
    segments += [(DIGITS[digit]['id'], mask) for digit, mask in zip(scene.digits, scene.masks)]
    ids, infos = np.full(scene.labels.shape, VOID), []
    for number, (category_id, mask) in enumerate(segments):
        segment_id = 1000 * category_id + number
        ids[mask] = segment_id
        infos.append(dict(id=segment_id, category_id=category_id, **measure(encode(mask))))
    colours = np.stack([ids >> shift & 255 for shift in (0, 8, 16)], axis=-1)
    Image.fromarray(colours.astype(np.uint8)).save(path)
    return dict(image_id=image_id, file_name=path.name, segments_info=infos)


def write_split(out: Path, split: Split, num_scenes: int, seed: int) -> str:
    """Write a split in all layouts and return a summary of it."""
    ade_images = out / 'ade20k/images' / split.ade20k_name
    ade_annotations = out / 'ade20k/annotations' / split.ade20k_name
    coco_images = out / 'coco' / split.coco_name
    segments = out / f'coco/annotations/panoptic_{split.coco_name}'
    class_folders = [out / 'imagenet' / split.name / str(digit) for digit in range(10)]
    for folder in (ade_images, ade_annotations, coco_images, segments, *class_folders):
        folder.mkdir(parents=True)

    # A generator of its own makes a split independent of the other's number of scenes.
    rng = np.random.default_rng((seed, SPLITS.index(split)))
    photos = [load_photo(name) for name in split.photos]
    digit_source = sample_digits(split, rng)
    images, annotations, panoptic = [], [], []
    for image_id in track(range(1, num_scenes + 1), description=f'{split.name} scenes'):
        scene = make_scene(photos, digit_source, rng)
        name = f'scene_{image_id - 1:05d}'
        save_jpeg(scene.image, ade_images / f'{name}.jpg')
        Image.fromarray(scene.labels).save(ade_annotations / f'{name}.png')
        link_or_copy(ade_images / f'{name}.jpg', coco_images / f'{name}.jpg')
        height, width = scene.labels.shape
        images.append(dict(id=image_id, file_name=f'{name}.jpg', height=height, width=width))
        panoptic.append(panoptic_annotation(image_id, scene, segments / f'{name}.png'))

        for digit, mask in zip(scene.digits, scene.masks):
            annotation = coco_annotation(len(annotations) + 1, image_id, digit, mask)
            annotations.append(annotation)
            crop = crop_square(scene.image, annotation['bbox'])
            save_jpeg(crop, class_folders[digit] / f'{name}_{annotation["id"]:05d}.jpg')

    info = dict(description=f'Digits on photographs, {split.name} split, seed {seed}')
    coco = dict(info=info, licenses=[], images=images, annotations=annotations, categories=DIGITS)
    (segments.parent / f'instances_{split.coco_name}.json').write_text(json.dumps(coco))
    categories = [dict(digit, isthing=1) for digit in DIGITS] + [dict(PHOTOGRAPH, isthing=0)]
    coco.update(annotations=panoptic, categories=categories)
    segments.with_suffix('.json').write_text(json.dumps(coco))

    num_empty = num_scenes - len({annotation['image_id'] for annotation in annotations})
    return (
        f'{split.name}: {num_scenes} scenes in ade20k and coco ({num_empty} without digits), '
        f'{len(annotations)} digits in coco and imagenet'
    )


def draw_annotations(image: Image.Image, labels: np.ndarray, annotations: list[dict]) -> Image.Image:
    """Colour the labels, but for the background, and draw the boxes and names; enlarged."""
    palette = np.zeros((FIRST_DIGIT + 10, 3), np.uint8)
    palette[UNLABELLED] = 255
    for digit in range(10):
        palette[FIRST_DIGIT + digit] = np.multiply(colorsys.hsv_to_rgb(digit / 10, 0.8, 1), 255)
    labels = labels.repeat(PREVIEW_SCALE, 0).repeat(PREVIEW_SCALE, 1)
    drawn = np.where((labels == BACKGROUND)[..., None], np.asarray(enlarge(image)), palette[labels])
    drawn = Image.fromarray(drawn)
    draw, font = ImageDraw.Draw(drawn), ImageFont.load_default(22)
    for annotation in annotations:
        x, y, width, height = (PREVIEW_SCALE * side for side in annotation['bbox'])
        digit = annotation['category_id'] - 1
        colour = tuple(palette[FIRST_DIGIT + digit].tolist())
        draw.rectangle((x, y, x + width - 1, y + height - 1), outline=colour, width=2)
        tag_top = max(y - 24, 0)  # above the box where there is room
        draw.rectangle((x, tag_top, x + 20, tag_top + 24), fill=colour)
        draw.text((x + 10, tag_top + 12), str(digit), fill='black', font=font, anchor='mm')
    return drawn


def enlarge(image: Image.Image) -> Image.Image:
    return image.resize([PREVIEW_SCALE * side for side in image.size], Image.Resampling.BICUBIC)


def write_preview(out: Path) -> None:
    """Draw some scenes beside their annotations, as they are in the files just written."""
    cell, heading = PREVIEW_SCALE * SIDES[1] + 16, 40
    preview = Image.new('RGB', (2 * len(SPLITS) * cell, PREVIEW_SCENES * cell + heading), 'white')
    draw, font = ImageDraw.Draw(preview), ImageFont.load_default(24)
    for column, split in enumerate(SPLITS):
        coco = json.loads((out / f'coco/annotations/instances_{split.coco_name}.json').read_text())
        annotations = defaultdict(list)
        for annotation in coco['annotations']:
            annotations[annotation['image_id']].append(annotation)
        left = 2 * column * cell + 8
        draw.text((left, 6), f'{split.name}: scenes', fill='black', font=font)
        draw.text((left + cell, 6), f'{split.name}: annotations', fill='black', font=font)
        for row, info in enumerate(coco['images'][:PREVIEW_SCENES]):
            image = Image.open(out / 'coco' / split.coco_name / info['file_name'])
            label_file = (out / 'ade20k/annotations' / split.ade20k_name / info['file_name']).with_suffix(
                '.png'
            )
            labels = np.asarray(Image.open(label_file))
            top = row * cell + heading
            preview.paste(enlarge(image), (left, top))
            preview.paste(draw_annotations(image, labels, annotations[info['id']]), (left + cell, top))
    preview.save(out / 'preview.png')


def write_readme(out: Path, seed: int, summaries: list[str]) -> None:
    counts = '\n'.join(f'  {summary}' for summary in summaries)
    photos = '\n'.join(f'  {name} ({licence})' for split in SPLITS for name, licence in split.photos.items())
    (out / 'README.txt').write_text(f"""\
Handwritten digits pasted on photographs: the same scenes as semantic segmentation (ade20k) and as
detection, instance and panoptic segmentation (coco), and crops of their digits as classification
(imagenet). Written by prepare_sample_data.py with seed {seed}.

{counts}

Digits: scikit-learn's, a copy of the UCI ML hand-written digits (E. Alpaydin, C. Kaynak).
Photographs, of scikit-image and scikit-learn:
{photos}
""")


def checksums(folder: Path) -> str:
    """Return the SHA-256 of each file in the folder, in the format of `sha256sum`."""
    lines = []
    for path in sorted(folder.rglob('*')):
        if path != folder / CHECKSUMS and (path.is_symlink() or not path.is_dir()):
            content = path.read_bytes() if path.is_file() else b''
            name = path.relative_to(folder).as_posix()
            lines.append(f'{hashlib.sha256(content).hexdigest()}  {name}\n')
    return ''.join(lines)


def check_replaceable(out: Path) -> None:
    """Exit unless everything at `out` was made by this script and is unchanged since."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    record = out / CHECKSUMS
    if not record.is_file() or record.read_text() != checksums(out):
        raise SystemExit(
            f'{out} is or holds something that this script did not make, or that was changed '
            'since. Please move it away or choose another folder.'
        )


def integer_from(minimum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f'must be an integer of at least {minimum}, but is {text!r}')
        return int(text)

    return parse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'out', metavar='OUT', type=Path, help='folder to write; an earlier data set is replaced'
    )
    parser.add_argument(
        '--num-train',
        metavar='N',
        type=integer_from(1),
        default=320,
        help='number of training scenes (default: %(default)s)',
    )
    parser.add_argument(
        '--num-val',
        metavar='N',
        type=integer_from(1),
        default=60,
        help='number of validation scenes (default: %(default)s)',
    )
    parser.add_argument(
        '--seed',
        metavar='S',
        type=integer_from(0),
        default=0,
        help='seed of all random choices (default: %(default)s)',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    out = args.out.resolve()
    check_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Written aside and moved when complete, so that OUT never holds half a data set.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f'.{out.name}-') as folder:
        unfinished = Path(folder) / out.name
        unfinished.mkdir()
        summaries = [
            write_split(unfinished, split, num_scenes, args.seed)
            for split, num_scenes in zip(SPLITS, (args.num_train, args.num_val))
        ]
        write_preview(unfinished)
        write_readme(unfinished, args.seed, summaries)
        (unfinished / CHECKSUMS).write_text(checksums(unfinished))
        if out.exists():
            out.rename(Path(folder) / 'replaced')
        unfinished.rename(out)
    print(*summaries, f'Preview: {out / "preview.png"}', sep='\n')


if __name__ == '__main__':
    main()
