"""Feature maps of every column and level of a RevCol, coloured by their three principal components.

    python tools/analysis/feature_maps.py configs/upernet_revcol_t_ade20k.py WEIGHTS photo.jpg --out maps

IMAGES are files, folders and patterns. Printed, and written as feature_maps.json, is how much of each map's
variance its colours show; of every image there is a figure, one level a row, one column a column.

With --fit level the components are those of all columns of a level together, for one image: colours can be
compared along a row, but not between levels or images. With --fit map they are those of each map alone, which
shows more of it, and colours cannot be compared. An image that cannot be read is named and left out, the rest
is done, and the exit status is 65.
"""

import sys
from pathlib import Path

from revcol_mm.check_env import CORE, require_parts

require_parts('feature maps', (*CORE, 'mmcv', 'matplotlib', 'sklearn'))

import numpy as np

from revcol_mm.analysis.command_line import make_parser, read_arguments, write_report
from revcol_mm.analysis.feature_maps import (
    FITS,
    FeatureMaps,
    column_backbone,
    draw_feature_maps,
    feature_maps,
)
from revcol_mm.apis import init_inferencer
from revcol_mm.apis.image_files import UNREADABLE, find_sources, read_pictures
from revcol_mm.errors import errors_in_one_line


def table(maps: FeatureMaps) -> str:
    """Which share of each map's variance is in its colours, in percent."""
    num_levels = maps.explained.shape[1]
    lines = [
        ' | '.join(['| column', *(f'level {level}' for level in range(num_levels))]) + ' |',
        '|---' * (num_levels + 1) + '|',
    ]
    for column, shares in enumerate(maps.explained):
        cells = ['' if np.isnan(share) else f'{100 * share:.1f}' for share in shares]
        lines.append(' | '.join([f'| {column}', *cells]) + ' |')
    return '\n'.join(lines)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument('checkpoint', help='weights, file or URL')
    parser.add_argument('images', nargs='+', metavar='IMAGES', help='file, folder or pattern')
    parser.add_argument('--fit', choices=FITS, default='level', help='of the components [level]')
    parser.add_argument('--device', help="such as 'cpu' or 'cuda:1' [a GPU where there is one]")
    problems, rows = {}, []
    with errors_in_one_line():
        args, cfg = read_arguments(parser)
        sources = find_sources(args.images, leave_out=args.out or Path())
        if videos := [str(source.path) for source in sources if source.is_video]:
            raise ValueError(f'feature maps are of images, not of videos: {", ".join(videos)}')
        inferencer = init_inferencer(cfg, args.checkpoint, args.device)
        backbone = column_backbone(inferencer.model)
        for source, image, *_ in read_pictures(sources, inferencer.read, problems.__setitem__):
            picture, inputs = inferencer.network_input(image)
            height, width = picture.shape[:2]
            maps = feature_maps(backbone, inputs, (height, width), args.fit)
            print(f'{source.file_name}, {height} x {width} pixels, % of variance\n{table(maps)}\n')
            shares = [[None if np.isnan(share) else share for share in column] for column in maps.explained]
            rows.append(dict(file_name=source.file_name, size=(height, width), explained_variance=shares))
            if args.out:
                path = args.out / f'{source.name}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                draw_feature_maps(picture, maps).savefig(path, dpi=100)
        report = dict(config=args.config, checkpoint=args.checkpoint, fit=args.fit, images=rows)
        write_report(report, args.out, 'feature_maps')
    for source, reason in problems.items():
        print(f'{source.path}: {reason}', file=sys.stderr)
    if problems:
        sys.exit(UNREADABLE)


if __name__ == '__main__':
    main()
