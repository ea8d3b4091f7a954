"""Convert annotations in Pascal VOC's XML to COCO's JSON, one file for each split.

    python tools/convert_voc.py data/VOCdevkit/VOC2007 --out data/voc2007

reads ROOT/Annotations/*.xml for the images in ROOT/JPEGImages that the lists in ROOT/ImageSets/Main name,
writes OUT/train.json, OUT/val.json and so on, and prints the lines for a config. MMDetection's XMLDataset
reads VOC, too, but *.jpg alone, and says nothing of objects that it leaves out.

Boxes are as in MMDetection: VOC's pixels count from 1 and include the last, and of all four coordinates 1 is
subtracted; width and height are differences. What is difficult is a crowd ('iscrowd': 1), which is neither
learnt nor counted. Boxes are clipped to the image, whose size is read from its file. What is left out is
named: objects without a box, or of other classes than --classes; annotations that cannot be read, with their
images. Objects without a box are also listed in the file, under 'left_out' of its 'info', where
tools/check_data.py finds them.
"""

import argparse
import json
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from revcol_mm.data.findings import Findings
from revcol_mm.data.samples import image_size
from revcol_mm.errors import errors_in_one_line

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
LEFT_OUT = 'they are left out'


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
        help='lists in ROOT/ImageSets/Main to convert [all that name images alone; without lists, '
        "all annotations as 'all']",
    )
    parser.add_argument(
        '--classes', nargs='+', metavar='NAME', help='classes, in order [all there are, by their names]'
    )
    return parser.parse_args()


def read_splits(root: Path, names: list[str] | None) -> dict[str, list[str]]:
    """Names of images, without suffix, by split.

    Raises:
        FileNotFoundError: If a split's list, or all annotations, are missing.
        ValueError: If a list has more than names.
    """
    lists = root / 'ImageSets/Main'
    if not (root / 'Annotations').is_dir():
        raise FileNotFoundError(f'no folder {root / "Annotations"}')
    if names is None and not lists.is_dir():
        return {'all': sorted(path.stem for path in (root / 'Annotations').glob('*.xml'))}
    splits = {}
    for path in [lists / f'{name}.txt' for name in names] if names else sorted(lists.glob('*.txt')):
        if not path.is_file():
            raise FileNotFoundError(
                f'no list {path}; there are {sorted(each.stem for each in lists.glob("*.txt"))}'
            )
        lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
        if all(len(line) == 1 for line in lines):
            splits[path.stem] = [line[0] for line in lines]
        elif names:
            raise ValueError(f'{path} has more than a name in a line; it is a list of one class, not a split')
    if not any(splits.values()):
        raise FileNotFoundError(f'no images are named in {lists}')
    return splits


class Annotation:
    """An XML file: objects with a box, and what is wrong with it.

    Args:
        path: The file.
        image: Its image.
        findings: Where what is wrong is added to.

    Attributes:
        size: Width and height of the image, as it is shown.
        objects: Name, box [x, y, width, height] and whether it is difficult, of each.
        left_out: Objects that have no name or no box in the image, in words.

    Raises:
        OSError, ValueError: If it or its image cannot be read.
    """

    def __init__(self, path: Path, image: Path, findings: Findings) -> None:
        self.path, self.findings = path, findings
        self.size = image_size(str(image))
        try:
            root = ET.parse(path).getroot()  # noqa: S314  expat expands no entities without end since 2.4.1
        except ET.ParseError as error:
            raise ValueError(f'it is not XML: {error}') from error
        stated = tuple(_number(root, f'size/{side}', 0) for side in ('width', 'height'))
        if root.find('size') is not None and stated != self.size:
            text = f'{path}: {stated[0]} x {stated[1]}, its image has {self.size[0]} x {self.size[1]} pixels'
            self._add('size', "sizes that are not the image's", 'the size is taken from the image', text)
        self.left_out: list[str] = []
        self.objects = [each for node in root.findall('object') if (each := self._read(node))]

    def _add(self, kind: str, message: str, remedy: str, *examples: str) -> None:
        self.findings.add(kind, 'Annotations', message, remedy, examples, severity='warning')

    def _leave_out(self, kind: str, message: str, text: str) -> None:
        self._add(kind, message, LEFT_OUT, text)
        self.left_out.append(f'{kind}: {text}')

    def _read(self, node: ET.Element) -> tuple[str, list[int], bool] | None:
        name = (node.findtext('name') or '').strip()
        corners = [_number(node, f'bndbox/{key}') for key in ('xmin', 'ymin', 'xmax', 'ymax')]
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
            beyond = "boxes that reach beyond their image, or count from 0 where VOC's count from 1"
            self._add('box beyond', beyond, 'they are clipped', f'{text} in {width} x {height} pixels')
        return name, box, bool(_number(node, 'difficult', 0))


def _number(node: ET.Element, path: str, default: int | None = None) -> int | None:
    """A number of an element's text, without what follows the point, as in MMDetection; else the default."""
    try:
        return int(float(node.findtext(path) or ''))
    except (ValueError, OverflowError):
        return default


def convert(root: Path, splits: dict[str, list[str]], findings: Findings) -> dict[str, dict[str, Any]]:
    """Annotations that can be read, by the name of their image; each with the file's name.

    An image that is in several splits is read once.
    """
    images = {
        path.stem: path for path in sorted((root / 'JPEGImages').glob('*')) if path.suffix.lower() in SUFFIXES
    }
    read = {}
    for name in track(
        sorted({name for names in splits.values() for name in names}), console=Console(stderr=True)
    ):
        path = root / 'Annotations' / f'{name}.xml'
        if name not in images:
            findings.add('no image', 'JPEGImages', 'images that are not there', LEFT_OUT, [name])
            continue
        try:
            read[name] = (images[name].name, Annotation(path, images[name], findings))
        except FileNotFoundError:
            findings.add('no annotation', 'Annotations', 'images without an XML file', LEFT_OUT, [path])
        except (OSError, ValueError) as error:
            message = 'annotations or images that cannot be read'
            findings.add('unreadable', 'Annotations', message, LEFT_OUT, [f'{path}: {error}'])
    return read


def coco(names: list[str], read: dict, classes: list[str]) -> dict[str, Any]:
    """COCO's content of a split."""
    images, annotations, left_out = [], [], []
    for name in dict.fromkeys(names):
        if name not in read:
            continue
        file_name, annotation = read[name]
        left_out += annotation.left_out
        width, height = annotation.size
        images.append(dict(id=len(images) + 1, file_name=file_name, width=width, height=height))
        for class_name, box, difficult in annotation.objects:
            if class_name in classes:
                annotations.append(
                    dict(
                        id=len(annotations) + 1,  # pycocotools takes 0 for none
                        image_id=len(images),
                        category_id=classes.index(class_name) + 1,
                        bbox=box,
                        area=box[2] * box[3],
                        iscrowd=int(difficult),
                    )
                )
    categories = [dict(id=index, name=name) for index, name in enumerate(classes, 1)]
    return dict(info=dict(left_out=left_out), images=images, annotations=annotations, categories=categories)


def main() -> None:
    args = parse_args()
    findings = Findings(max_examples=None)
    with errors_in_one_line():
        splits = read_splits(args.root, args.splits)
        read = convert(args.root, splits, findings)
        found = Counter(name for _, annotation in read.values() for name, _, _ in annotation.objects)
        classes = args.classes or sorted(found)
        if len(set(classes)) < len(classes):
            raise ValueError(f'--classes names one twice: {" ".join(classes)}')
        for name in classes:
            if not found[name]:
                raise ValueError(
                    f'no object is called {name!r}; there are {", ".join(sorted(found)) or "none"}'
                )
        for name in sorted(found.keys() - set(classes)):
            findings.add(
                'class', 'Annotations', 'objects that are none of the classes', LEFT_OUT, [name], found[name]
            )
        args.out.mkdir(parents=True, exist_ok=True)
        for split, names in splits.items():
            content = coco(names, read, classes)
            (args.out / f'{split}.json').write_text(json.dumps(content))
            counts = f'{len(content["images"])} images, {len(content["annotations"])} objects'
            print(f'{args.out / split}.json: {counts}')
    for each in findings:
        print(f'\n{each.count} {each.message}; {each.remedy}:', *each.examples, sep='\n  ')
    print(f'\nclasses = {tuple(classes)}')
    print(f"dataset = dict(data_prefix=dict(img='{(args.root / 'JPEGImages').resolve().as_posix()}/'))")


if __name__ == '__main__':
    main()
