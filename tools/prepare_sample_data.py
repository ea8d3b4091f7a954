"""Write a small data set of real pictures for trying out training and testing on a CPU.

Handwritten digits (scikit-learn) are pasted on crops of photographs (scikit-image, scikit-learn). The same
scenes are written in the layouts of ADE20K (semantic segmentation) and COCO (detection, instance and panoptic
segmentation: digits are things, photographs stuff). Crops of the digits are written in the layout of ImageNet
(classification).

Everything comes from installed packages; nothing is downloaded. The same arguments give the same files, byte
for byte.
"""

import argparse
import hashlib
import tempfile
from pathlib import Path

from sample_data.layouts import write_split
from sample_data.preview import write_preview
from sample_data.scenes import SPLITS

CHECKSUMS = 'SHA256SUMS'


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
    """Exit with an error if `out` has content that this script did not write or that was changed since."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    record = out / CHECKSUMS
    if not record.is_file() or record.read_text() != checksums(out):
        raise SystemExit(
            f'error: {out} was not written by this script or was changed since; move it away or choose '
            'another folder'
        )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('out', metavar='OUT', type=Path, help='output folder; replaces earlier sample data')
    parser.add_argument(
        '--num-train', metavar='N', type=int, default=320, help='number of training scenes [320]'
    )
    parser.add_argument(
        '--num-val', metavar='N', type=int, default=60, help='number of validation scenes [60]'
    )
    parser.add_argument('--seed', metavar='S', type=int, default=0, help='seed of all random choices [0]')
    args = parser.parse_args()
    for name, minimum in (('num_train', 1), ('num_val', 1), ('seed', 0)):
        if (value := getattr(args, name)) < minimum:
            parser.error(f'--{name.replace("_", "-")} must be at least {minimum}, got {value}')
    return args


def main() -> None:
    args = parse_args()
    out = args.out.resolve()
    check_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Write to a temporary folder and move it when complete, so that OUT never holds half a data set.
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
