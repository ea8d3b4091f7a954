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

WIDTH, HEIGHT = 1.3, 0.62  # of a box
STEP_X, STEP_Y = 2.4, 1.2  # from box to box
STYLES = {
    'reversible: plus alpha times the level of the column before': dict(color='C3', linewidth=2.4),
    'fusion: the level below, in the same column': dict(color='C0', linewidth=1.4),
    'fusion: the level above, in the column before': dict(color='C2', linewidth=1.4, linestyle='--'),
    'the image, which every column sees again': dict(color='0.45', linewidth=1.4),
}
COUPLE, BELOW, ABOVE, IMAGE = STYLES.values()


def draw_box(axis: Axes, column: int, level: int, text: str, colour: str) -> FancyBboxPatch:
    """Draw the box of a module."""
    x, y = STEP_X * column, STEP_Y * level
    box = FancyBboxPatch(
        (x - WIDTH / 2, y - HEIGHT / 2),
        WIDTH,
        HEIGHT,
        boxstyle='round,pad=0.04',
        facecolor=colour,
        edgecolor='0.3',
    )
    axis.text(x, y, text, ha='center', va='center', fontsize=8)
    return axis.add_patch(box)


def draw(model: RevCol, title: str) -> Figure:
    """Draw a model with the connections that ``Column.reads`` lists."""
    num_levels, num_columns = len(model.channels), model.num_columns
    figure = Figure(figsize=(2 + 2 * num_columns, 6.2), layout='constrained')
    axis = figure.subplots()
    # The row of boxes below the levels: the stem, and beneath every column a point that it reads.
    boxes = {(-1, -1): draw_box(axis, -1, -1, 'stem\n4x4 conv, stride 4', 'whitesmoke')}

    def connect(style: dict, source: tuple[int, int], target: tuple[int, int]) -> None:
        """Draw an arrow between two places, each a column and a level, from the border of its box."""
        ends = [(STEP_X * column, STEP_Y * level) for column, level in (target, source)]
        arrow = dict(arrowstyle='-|>', shrinkA=0, shrinkB=0, mutation_scale=13, **style)
        axis.annotate('', *ends, arrowprops=dict(arrow, patchA=boxes.get(source), patchB=boxes.get(target)))

    for index, column in enumerate(model.columns):
        for level, (below, *above) in enumerate(column.reads):
            blocks = '1 block' if model.layers[level] == 1 else f'{model.layers[level]} blocks'
            text = f'level {level}\n{blocks}, C = {model.channels[level]}'
            boxes[index, level] = draw_box(axis, index, level, text, 'aliceblue')
            if below is not None:
                connect(BELOW, (index, below), (index, level))
            for source in above:
                connect(ABOVE, (index - 1, source), (index, level))
            if index:
                connect(COUPLE, (index - 1, level), (index, level))
        name = f'column {index}' + (': the features' if index == num_columns - 1 else '')
        axis.text(STEP_X * index, STEP_Y * (num_levels - 0.38), name, ha='center', fontsize=9)
        connect(IMAGE, (index, -1), (index, 0))
    connect(IMAGE, (-1, -1), (0, -1))
    axis.plot([0, STEP_X * (num_columns - 1)], [-STEP_Y, -STEP_Y], **IMAGE)
    for level in range(num_levels):
        text = f'stride {4 * 2**level}'
        axis.text(-STEP_X, STEP_Y * level, text, ha='center', va='center', fontsize=9, color='0.35')
    for label, style in STYLES.items():
        axis.plot([], [], label=label, **style)
    axis.legend(loc='lower center', bbox_to_anchor=(0.5, -0.12), ncols=2, fontsize=8.5, frameon=False)
    axis.set_title(title, fontsize=11)
    axis.set_axis_off()
    axis.set_xlim(-STEP_X - 0.9, STEP_X * (num_columns - 1) + 1.2)
    axis.set_ylim(-STEP_Y - 0.5, STEP_Y * num_levels - 0.24)
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
