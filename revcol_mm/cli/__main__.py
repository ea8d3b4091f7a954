"""``python -m revcol_mm.cli``, which is ``revcol``."""

from revcol_mm.cli import main

if __name__ == '__main__':
    main()
