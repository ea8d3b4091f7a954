"""Print the parameters and FLOPs of every part of the models of configs.

FLOPs are multiply-accumulates, as papers report them, of one image at inference. Parameters include those of
auxiliary heads and supervision. No weights are downloaded or allocated. Without --shape the input is 800 x
1280 for detectors, the training crop at four times its width for segmentors (512 x 2048 for crops of 512 x
512) and the training crop for classifiers.

Example: python tools/analysis/get_flops.py configs/cascade_mask_rcnn_revcol_t_coco.py --shape 800 1280
"""

import argparse

from revcol_mm.analysis.complexity import Complexity, count_complexity
from revcol_mm.config.command_line import read_config
from revcol_mm.errors import errors_in_one_line


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='+', metavar='CONFIG')
    parser.add_argument('--shape', nargs=2, type=int, metavar=('H', 'W'), help='size of the input, in pixels')
    return parser.parse_args()


def table(complexity: Complexity) -> str:
    """Format the parameters and FLOPs with one part per line."""
    height, width = complexity.shape
    parameters, flops = complexity.parameters, complexity.flops
    lines = [f'{f"{height} x {width}":20} {"parameters, M":>14} {"FLOPs, G":>12}']
    for part in {**parameters, **flops}:
        lines.append(f'{part:20} {parameters[part] / 1e6:14.2f} {flops[part] / 1e9:12.2f}')
    lines.append(f'{"total":20} {parameters.total() / 1e6:14.2f} {flops.total() / 1e9:12.2f}')
    return '\n'.join(lines)


def main() -> None:
    args = parse_args()
    for path in args.configs:
        with errors_in_one_line():
            complexity = count_complexity(read_config(path), args.shape)
        print(f'{path}\n{table(complexity)}\n')
    print('FLOPs are multiply-accumulates of one image at inference; parameters are as trained.')


if __name__ == '__main__':
    main()
