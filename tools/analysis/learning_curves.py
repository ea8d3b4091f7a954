"""Plot the loss and validation metrics of trainings over iterations, from MMEngine's logs.

    python tools/analysis/learning_curves.py work_dirs/a work_dirs/b --out work_dirs/curves

prints a table of the last validation and writes the curves as learning_curves.json and as a plot. A RUN is a
work dir, or a folder of work dirs that differ in their seed, which are drawn as their mean with a band from
the minimum to the maximum.
"""

import argparse
from pathlib import Path

from revcol_mm.analysis.command_line import write_report
from revcol_mm.analysis.learning_curves import plot, summarise, table
from revcol_mm.config.command_line import check_writable
from revcol_mm.errors import errors_in_one_line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN', help='work dir or folder of work dirs')
    parser.add_argument('--metrics', nargs='+', help='validation metrics, such as mIoU coco/bbox_mAP')
    parser.add_argument('--out', type=Path, help='folder for learning_curves.json and .png')
    args = parser.parse_args()
    rows = []
    with errors_in_one_line():
        for run in args.runs:
            rows += summarise(run, args.metrics)
        if unknown := set(args.metrics or ()) - {row['metric'] for row in rows}:
            raise ValueError(f'no run has a metric {" or ".join(sorted(unknown))}')
        if args.out:
            check_writable(args.out)
    print(table(rows))
    write_report(rows, args.out, 'learning_curves', plot)


if __name__ == '__main__':
    main()
