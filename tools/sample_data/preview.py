"""A picture of some scenes beside their annotations, read from the files of the sample data."""

import colorsys
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .scenes import BACKGROUND, FIRST_DIGIT, SIDES, SPLITS, UNLABELLED

NUM_SCENES = 4  # of each split
SCALE = 2


def enlarge(image: Image.Image) -> Image.Image:
    return image.resize([SCALE * side for side in image.size], Image.Resampling.BICUBIC)


def draw_annotations(image: Image.Image, labels: np.ndarray, annotations: list[dict]) -> Image.Image:
    """Enlarge an image, colour its labels except the background, and draw boxes and class names."""
    palette = np.zeros((FIRST_DIGIT + 10, 3), np.uint8)
    palette[UNLABELLED] = 255
    for digit in range(10):
        palette[FIRST_DIGIT + digit] = np.multiply(colorsys.hsv_to_rgb(digit / 10, 0.8, 1), 255)
    labels = labels.repeat(SCALE, 0).repeat(SCALE, 1)
    drawn = np.where((labels == BACKGROUND)[..., None], np.asarray(enlarge(image)), palette[labels])
    drawn = Image.fromarray(drawn)
    draw, font = ImageDraw.Draw(drawn), ImageFont.load_default(22)
    for annotation in annotations:
        x, y, width, height = (SCALE * side for side in annotation['bbox'])
        digit = annotation['category_id'] - 1
        colour = tuple(palette[FIRST_DIGIT + digit].tolist())
        draw.rectangle((x, y, x + width - 1, y + height - 1), outline=colour, width=2)
        tag_top = max(y - 24, 0)
        draw.rectangle((x, tag_top, x + 20, tag_top + 24), fill=colour)
        draw.text((x + 10, tag_top + 12), str(digit), fill='black', font=font, anchor='mm')
    return drawn


def write_preview(out: Path) -> None:
    cell, heading = SCALE * SIDES[1] + 16, 40
    preview = Image.new('RGB', (2 * len(SPLITS) * cell, NUM_SCENES * cell + heading), 'white')
    draw, font = ImageDraw.Draw(preview), ImageFont.load_default(24)
    for column, split in enumerate(SPLITS):
        coco = json.loads((out / f'coco/annotations/instances_{split.coco_name}.json').read_text())
        annotations = defaultdict(list)
        for annotation in coco['annotations']:
            annotations[annotation['image_id']].append(annotation)
        left = 2 * column * cell + 8
        draw.text((left, 6), f'{split.name}: scenes', fill='black', font=font)
        draw.text((left + cell, 6), f'{split.name}: annotations', fill='black', font=font)
        for row, info in enumerate(coco['images'][:NUM_SCENES]):
            image = Image.open(out / 'coco' / split.coco_name / info['file_name'])
            label_file = out / 'ade20k/annotations' / split.ade20k_name / info['file_name']
            labels = np.asarray(Image.open(label_file.with_suffix('.png')))
            top = row * cell + heading
            preview.paste(enlarge(image), (left, top))
            preview.paste(draw_annotations(image, labels, annotations[info['id']]), (left + cell, top))
    preview.save(out / 'preview.png')
