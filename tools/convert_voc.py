"""Convert Pascal VOC's XML annotations to COCO's JSON, one file for each split.

    python tools/convert_voc.py data/VOCdevkit/VOC2007 --out data/voc2007

reads ROOT/Annotations/*.xml for the images in ROOT/JPEGImages that are listed in ROOT/ImageSets/Main, writes
OUT/train.json, OUT/val.json and so on, and prints the lines for a config. MMDetection's XMLDataset also reads
VOC, but only *.jpg images, and it skips objects without saying so.

Boxes are converted as in MMDetection: 1 is subtracted from all four coordinates, because VOC counts pixels
from 1, and width and height are differences of coordinates. Boxes are clipped to the image, whose size is
read from its file. Difficult objects become crowds ('iscrowd': 1), which are neither learnt nor evaluated.

The tool lists what it leaves out: objects without a valid box, objects of classes that are not in --classes,
and unreadable annotations, with their images. Objects without a valid box are also listed in the JSON file,
in 'left_out' of 'info', from where tools/check_data.py reports them.
"""

import argparse
import json
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from revcol_mm.data.sample_files import IMAGE_SUFFIXES
from revcol_mm.data.samples import image_size
from revcol_mm.errors import errors_in_one_line

LEFT_OUT = 'they are left out'
CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('root', metavar='ROOT', type=Path, help='folder with Annotations and JPEGImages')
    parser.add_argument('--out', metavar='OUT', type=Path, required=True, help='folder for the JSON files')
    parser.add_argument(
        '--splits',
        nargs='+',
        metavar='NAME',
        help='names of the lists in ROOT/ImageSets/Main to convert [all lists that contain only names of '
        "images; without any list, all annotations become the split 'all']",
    )
    parser.add_argument(
        '--classes', nargs='+', metavar='NAME', help='classes in order [all classes, sorted by name]'
    )
    return parser.parse_args()


def read_splits(root: Path, names: list[str] | None) -> dict[str, list[str]]:
    """Return the names of the images, without suffix, of each split.

    Raises:
        FileNotFoundError: If the list of a split, or all annotations, are missing.
        ValueError: If a list contains more than names.
    """
    lists = root / 'ImageSets/Main'
    if not (root / 'Annotations').is_dir():
        raise FileNotFoundError(f'no folder {root / "Annotations"}')
    if names is None and not lists.is_dir():
        return {'all': sorted(path.stem for path in (root / 'Annotations').glob('*.xml'))}
    splits = {}
    for path in [lists / f'{name}.txt' for name in names] if names else sorted(lists.glob('*.txt')):
        if not path.is_file():
            existing = sorted(each.stem for each in lists.glob('*.txt'))
            raise FileNotFoundError(f'no list {path}; there are {existing}')
        lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
        if all(len(line) == 1 for line in lines):
            splits[path.stem] = [line[0] for line in lines]
        elif names:
            raise ValueError(f'{path} has several words in a line: it is a list of one class, not a split')
    if not any(splits.values()):
        raise FileNotFoundError(f'the lists in {lists} name no images')
    return splits


class Annotation:
    """Objects of an XML file.

    Args:
        path: The file.
        image: Its image.
        problems: Occurrences of each problem, to which those of the file are added.

    Attributes:
        size: Width and height of the image, with its EXIF orientation applied.
        objects: Name, box [x, y, width, height] and difficulty of each valid object.
        left_out: A message for each object without a name or a valid box.

    Raises:
        OSError, ValueError: If the file or its image cannot be read.
    """

    def __init__(self, path: Path, image: Path, problems: dict[str, list[str]]) -> None:
        self.path, self.problems = path, problems
        self.size = image_size(str(image))
        try:
            root = ET.parse(path).getroot()  # noqa: S314  expat limits entity expansion since 2.4.1
        except ET.ParseError as error:
            raise ValueError(f'it is not XML: {error}') from error
        stated = tuple(_number(root, f'size/{side}', 0) for side in ('width', 'height'))
        if root.find('size') is not None and stated != self.size:
            text = f'{path}: {stated[0]} x {stated[1]}, its image has {self.size[0]} x {self.size[1]} pixels'
            self.problems["sizes that differ from the image's; the size of the image is used"].append(text)
        self.left_out: list[str] = []
        self.objects = [each for node in root.findall('object') if (each := self._read(node))]

    def _read(self, node: ET.Element) -> tuple[str, list[int], bool] | None:
        """Return an object, or None if it is left out."""
        name = (node.findtext('name') or '').strip()
        corners = [_number(node, f'bndbox/{key}') for key in CORNERS]
        text = f'{self.path}: {name} {corners}'
        if not name:
            return self._leave_out('no name', 'objects without a name', text)
        if None in corners:
            return self._leave_out('no box', 'objects without a box of four numbers', text)
        left, top, right, bottom = (number - 1 for number in corners)
        width, height = self.size
        clipped = [max(left, 0), max(top, 0), min(right, width), min(bottom, height)]
        box = [clipped[0], clipped[1], clipped[2] - clipped[0], clipped[3] - clipped[1]]
        if right <= left or bottom <= top:
            return self._leave_out('empty box', 'empty boxes', text)
        if min(box[2:]) <= 0:
            return self._leave_out('box outside', 'boxes outside of their image', text)
        if clipped != [left, top, right, bottom]:
            problem = 'boxes that reach beyond their image, or that count pixels from 0 instead of 1'
            self.problems[f'{problem}; they are clipped'].append(f'{text} in {width} x {height} pixels')
        return name, box, bool(_number(node, 'difficult', 0))

    def _leave_out(self, kind: str, message: str, text: str) -> None:
        self.problems[f'{message}; {LEFT_OUT}'].append(text)
        self.left_out.append(f'{kind}: {text}')


def _number(node: ET.Element, path: str, default: int | None = None) -> int | None:
    """Return the text of an element as a number, truncated as in MMDetection, or the default."""
    try:
        return int(float(node.findtext(path) or ''))
    except (ValueError, OverflowError):
        return default


def read_annotations(
    root: Path, names: set[str], problems: dict[str, list[str]]
) -> dict[str, tuple[str, Annotation]]:
    """Return the file name and the annotation of each image that can be read, by the name of the image."""
    images, read = {}, {}
    for path in sorted((root / 'JPEGImages').glob('*')):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            if path.stem in images:
                problems['files with the same name as another image, which they replace'].append(path.name)
            images[path.stem] = path
    for name in track(sorted(names), console=Console(stderr=True)):
        path = root / 'Annotations' / f'{name}.xml'
        if name not in images:
            problems[f'images that are missing; {LEFT_OUT}'].append(name)
            continue
        try:
            read[name] = (images[name].name, Annotation(path, images[name], problems))
        except FileNotFoundError:
            problems[f'images without an XML file; {LEFT_OUT}'].append(str(path))
        except (OSError, ValueError) as error:
            problems[f'annotations or images that cannot be read; {LEFT_OUT}'].append(f'{path}: {error}')
    return read


def to_coco(annotations: list[tuple[str, Annotation]], classes: list[str]) -> dict[str, Any]:
    """Return the content of COCO's JSON file for file names and annotations of images."""
    images, objects, left_out = [], [], []
    for file_name, annotation in annotations:
        left_out += annotation.left_out
        width, height = annotation.size
        images.append(dict(id=len(images) + 1, file_name=file_name, width=width, height=height))
        for class_name, box, difficult in annotation.objects:
            if class_name in classes:
                objects.append(
                    dict(
                        id=len(objects) + 1,  # pycocotools counts an object with id 0 as never found
                        image_id=len(images),
                        category_id=classes.index(class_name) + 1,
                        bbox=box,
                        area=box[2] * box[3],
                        iscrowd=int(difficult),
                    )
                )
    categories = [dict(id=index, name=name) for index, name in enumerate(classes, 1)]
    return dict(info=dict(left_out=left_out), images=images, annotations=objects, categories=categories)


def main() -> None:
    args = parse_args()
    problems = defaultdict(list)
    with errors_in_one_line():
        splits = read_splits(args.root, args.splits)
        read = read_annotations(args.root, {name for names in splits.values() for name in names}, problems)
        counts = Counter(name for _, annotation in read.values() for name, _, _ in annotation.objects)
        classes = args.classes or sorted(counts)
        if len(set(classes)) < len(classes):
            raise ValueError(f'--classes has a duplicate: {" ".join(classes)}')
        absent = [name for name in classes if not counts[name]]
        if absent and len(absent) == len(classes):
            existing = ', '.join(sorted(counts)) or 'none'
            raise ValueError(f'no object has a class of --classes, {", ".join(absent)}; there are {existing}')
        if absent:  # perhaps in other splits
            problems['classes that no object has'] = absent
        for name in sorted(counts.keys() - set(classes)):
            problems[f'objects whose class is not in --classes; {LEFT_OUT}'] += [name] * counts[name]
        args.out.mkdir(parents=True, exist_ok=True)
        for split, names in splits.items():
            content = to_coco([read[name] for name in dict.fromkeys(names) if name in read], classes)
            path = args.out / f'{split}.json'
            path.write_text(json.dumps(content))
            print(f'{path}: {len(content["images"])} images, {len(content["annotations"])} objects')
    for problem, occurrences in problems.items():
        print(f'\n{len(occurrences)} {problem}:', *dict.fromkeys(occurrences), sep='\n  ')
    print(f'\nclasses = {tuple(classes)}')
    print(f"dataset = dict(data_prefix=dict(img='{(args.root / 'JPEGImages').resolve().as_posix()}/'))")


if __name__ == '__main__':
    main()
