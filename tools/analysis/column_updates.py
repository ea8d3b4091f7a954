"""Measure whether columns that started as copies of one network have learned different things.

    python tools/analysis/column_updates.py configs/upernet_convnext_nano_2columns_camvid.py START WEIGHTS

prints for each level how far training moved the parameters of each column's stage away from those of the
network, as a fraction of their norm, and the cosine of this move with that of column 0: 1 for copies that
learn the same, empty if one of them did not move. START is the checkpoint of the network from which training
began, WEIGHTS that of the columns at its end.
"""

import torch
from mmengine.config import Config
from torch import nn
from torch.nn.utils import parameters_to_vector

from revcol_mm.analysis.command_line import make_parser, read_arguments, write_report
from revcol_mm.apis import init_model
from revcol_mm.checkpoints.layouts import model_weights
from revcol_mm.checkpoints.reading import read_checkpoint
from revcol_mm.errors import errors_in_one_line
from revcol_mm.markdown_table import markdown_table
from revcol_mm.models import ReversibleColumns


def stage_vectors(backbone: ReversibleColumns) -> list[list[torch.Tensor]]:
    """Return the parameters of the network's stages as vectors, indexed by level, then by column."""
    columns = [[getattr(level, 'stage', level) for level in column.levels] for column in backbone.columns]
    return [[parameters_to_vector(stage.parameters()) for stage in level] for level in zip(*columns)]


@torch.no_grad()
def measure(cfg: Config, start: str, checkpoint: str) -> list[dict]:
    """Return the relative move of every level's stage in every column, and its cosine with column 0's.

    Raises:
        ValueError: If the backbone does not consist of copies of a network.
    """
    backbone: nn.Module = init_model(cfg, checkpoint, 'cpu').backbone
    if not isinstance(backbone, ReversibleColumns) or backbone.mode != 'copies':
        raise ValueError(f'{cfg.filename}: the backbone must be ReversibleColumns in mode copies')
    trained = stage_vectors(backbone)
    backbone.load_network(model_weights(read_checkpoint(start)), start)
    rows = []
    for level, (after, before) in enumerate(zip(trained, stage_vectors(backbone))):
        moves = [own - first for own, first in zip(after, before)]
        rows += [
            dict(
                level=level,
                column=column,
                move=(move.norm() / before[column].norm()).item(),
                cosine=torch.cosine_similarity(move, moves[0], dim=0).item()
                if move.any() and moves[0].any()
                else None,
            )
            for column, move in enumerate(moves)
        ]
    return rows


def table(rows: list[dict]) -> str:
    """Format the rows as a Markdown table."""
    cells = [
        [row['level'], row['column'], f'{row["move"]:.3f}']
        + ([] if row['cosine'] is None else [f'{row["cosine"]:.2f}'])
        for row in rows
    ]
    return markdown_table(['level', 'column', 'move', 'cosine with column 0'], cells)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument('start', help='checkpoint of the network, file or URL')
    parser.add_argument('checkpoint', help='weights of the columns, file or URL')
    with errors_in_one_line():
        args, cfg = read_arguments(parser)
        rows = measure(cfg, args.start, args.checkpoint)
    print(table(rows))
    write_report(rows, args.out, 'column_updates')


if __name__ == '__main__':
    main()
