"""Markdown tables.

prettytable, which MMSegmentation installs, pads every cell, so that one new row would change whole tables in
docs.
"""

from typing import Any, Iterable, Sequence


def markdown_table(heads: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """Format a Markdown table.

    Args:
        heads: Column headings.
        rows: Cells of every row. A row may be shorter than the headings; the missing cells are empty.
    """
    lines = [f'| {" | ".join(map(str, row))} |{"|" * (len(heads) - len(row))}' for row in (heads, *rows)]
    return '\n'.join([lines[0], '|---' * len(heads) + '|', *lines[1:]])
