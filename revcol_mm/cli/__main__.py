"""``python -m revcol_mm.cli``, which is ``revcol``."""

from revcol_mm.cli import main

main()
