"""Draw the feature maps of every column and level of a RevCol, with principal components as colours.

    python tools/analysis/feature_maps.py configs/upernet_revcol_t_ade20k.py WEIGHTS photo.jpg --out maps

IMAGES are files, folders and patterns. The tool prints the share of each map's variance that its colours
explain and writes it to feature_maps.json. Every image gets a figure with levels as rows.

With --fit level the three components are computed from all columns of a level together, for one image.
Colours can be compared along a row, but not between levels or images. With --fit map they are computed from
each map separately, which explains more of its variance, but colours cannot be compared. An image that cannot
be read is reported and skipped, and the exit status is 65.
"""

import sys

from revcol_mm.check_env import CORE, require_parts

require_parts('feature maps', (*CORE, 'mmcv', 'matplotlib', 'sklearn'))

import numpy as np

from revcol_mm.analysis.command_line import (
    add_device_argument,
    make_parser,
    read_arguments,
    write_report,
)
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
from revcol_mm.markdown_table import markdown_table


def table(maps: FeatureMaps) -> str:
    """Format the share of each map's variance that its colours explain, in percent, as a Markdown table."""
    levels = [f'level {level}' for level in range(maps.explained.shape[1])]
    rows = [
        [column, *('' if np.isnan(share) else f'{100 * share:.1f}' for share in shares)]
        for column, shares in enumerate(maps.explained)
    ]
    return markdown_table(['column', *levels], rows)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument('checkpoint', help='weights, file or URL')
    parser.add_argument('images', nargs='+', metavar='IMAGES', help='file, folder or pattern')
    parser.add_argument(
        '--fit', choices=FITS, default='level', help='what components are computed from [level]'
    )
    add_device_argument(parser)
    problems, rows = {}, []
    with errors_in_one_line():
        args, cfg = read_arguments(parser)
        sources = find_sources(args.images, leave_out=args.out)
        if videos := [str(source.path) for source in sources if source.is_video]:
            raise ValueError(f'feature maps can be drawn of images only, not of videos: {", ".join(videos)}')
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
