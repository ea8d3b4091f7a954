"""``python -m revcol_mm.cli``, the same as ``revcol``."""

from revcol_mm.cli import main

if __name__ == '__main__':
    main()
