"""Draw the connections between the columns and levels of a RevCol, read from the model itself.

Example: python tools/analysis/draw_architecture.py tiny --out docs/figures/architecture.png
"""

import argparse
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from revcol_mm.models.backbones.revcol import ARCHS, RevCol

MAX_COLUMNS = 4  # with more columns, only the first two and the last one are drawn
BOX = (1.3, 0.62)  # width and height; the centres of neighbours are 2.4 and 1.2 apart
KINDS = {
    'couple': (
        'reversible: plus alpha times the level of the column before',
        dict(color='C3', linewidth=2.4),
    ),
    'below': ('fusion: the level below, in the same column', dict(color='C0', linewidth=1.4)),
    'above': (
        'fusion: the level above, in the column before',
        dict(color='C2', linewidth=1.4, linestyle='--'),
    ),
    'image': ('the image, which every column sees again', dict(color='0.45', linewidth=1.4)),
}


def centre(place: int, level: float) -> tuple[float, float]:
    """Return the centre of a box, given the position of its column from the left and its level."""
    return 2.4 * place, 1.2 * level


def box(axis: Axes, place: int, level: float, text: str, colour: str) -> None:
    """Draw the box of a module."""
    (x, y), (width, height) = centre(place, level), BOX
    corner = (x - width / 2, y - height / 2)
    axis.add_patch(
        FancyBboxPatch(corner, width, height, boxstyle='round,pad=0.04', facecolor=colour, edgecolor='0.3')
    )
    axis.text(x, y, text, ha='center', va='center', fontsize=8)


def arrow(axis: Axes, kind: str, start: tuple[float, float], end: tuple[float, float]) -> None:
    axis.annotate(
        '',
        end,
        start,
        arrowprops=dict(arrowstyle='-|>', shrinkA=0, shrinkB=0, mutation_scale=13, **KINDS[kind][1]),
    )


def connect(axis: Axes, kind: str, source: tuple[int, int], target: tuple[int, int]) -> None:
    """Draw an arrow from the border of one box to the border of another."""
    (x0, y0), (x1, y1) = centre(*source), centre(*target)
    width, height = BOX[0] / 2 + 0.06, BOX[1] / 2 + 0.06
    if kind == 'below':
        arrow(axis, kind, (x0, y0 + height), (x1, y1 - height))
    elif kind == 'couple':
        arrow(axis, kind, (x0 + width, y0), (x1 - width, y1))
    else:
        arrow(axis, kind, (x0 + width - 0.1, y0 - height), (x1 - width, y1 + height - 0.12))


def draw(model: RevCol, title: str) -> Figure:
    """Draw a model with the connections that ``Column.reads`` lists."""
    num_levels, last = len(model.channels), model.num_columns - 1
    shown = list(range(last + 1)) if last < MAX_COLUMNS else [0, 1, last]
    places = {index: place + (index == last > shown[-2] + 1) for place, index in enumerate(shown)}
    figure = Figure(figsize=(10, 6.2), layout='constrained')
    axis = figure.subplots()
    for index, place in places.items():
        for level, (below, *above) in enumerate(model.columns[index].reads):
            text = f'level {level}\n{model.layers[level]} blocks, C = {model.channels[level]}'
            box(axis, place, level, text.replace('1 blocks', '1 block'), 'aliceblue')
            if below is not None:
                connect(axis, 'below', (place, below), (place, level))
            for source in above:
                connect(axis, 'above', (place - 1, source), (place, level))
            if index:
                connect(axis, 'couple', (place - 1, level), (place, level))
        name = f'column {index}' + (': the features' if index == last else '')
        axis.text(*centre(place, num_levels - 0.38), name, ha='center', fontsize=9)
        x, y = centre(place, -1)
        arrow(axis, 'image', (x, y), (x, y + 1.2 - BOX[1] / 2 - 0.06))
    if len(shown) < last + 1:
        for level in range(num_levels):
            axis.text(*centre(2, level), '. . .', ha='center', va='center', fontsize=14)
    end = places[last]
    axis.plot([centre(0, 0)[0], centre(end, 0)[0]], [centre(0, -1)[1]] * 2, color='0.45', linewidth=1.4)
    box(axis, -1, -1, 'stem\n4x4 conv, stride 4', 'whitesmoke')
    arrow(axis, 'image', (centre(-1, -1)[0] + BOX[0] / 2 + 0.05, centre(0, -1)[1]), centre(0, -1))
    for level in range(num_levels):
        x, y = centre(-1, level)
        axis.text(x, y, f'stride {4 * 2**level}', ha='center', va='center', fontsize=9, color='0.35')
    for label, style in KINDS.values():
        axis.plot([], [], label=label, **style)
    axis.legend(loc='lower center', bbox_to_anchor=(0.5, -0.12), ncols=2, fontsize=8.5, frameon=False)
    axis.set_title(title, fontsize=11)
    axis.set_axis_off()
    axis.set_xlim(centre(-1, 0)[0] - 0.9, centre(end, 0)[0] + 1.2)
    axis.set_ylim(centre(0, -1)[1] - 0.5, centre(0, num_levels)[1] - 0.2)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('arch', nargs='?', default='tiny', choices=list(ARCHS), help='[tiny]')
    parser.add_argument('--out', type=Path, default=Path('architecture.png'), help='[architecture.png]')
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with torch.device('meta'):
        model = RevCol(args.arch)
    title = f'RevCol, arch {args.arch!r}: {model.num_columns} columns of {len(model.channels)} levels'
    draw(model, title).savefig(args.out, dpi=110)
    print(f'{title}, drawn in {args.out}')


if __name__ == '__main__':
    main()
