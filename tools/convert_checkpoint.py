"""Convert a checkpoint: the same as ``revcol convert``."""

from revcol_mm.cli.convert import main

if __name__ == '__main__':
    main()
