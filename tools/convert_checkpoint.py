"""Convert a checkpoint: ``revcol convert``, without installing the package."""

from revcol_mm.cli.convert import main

if __name__ == '__main__':
    main()
