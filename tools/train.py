"""Train a model: the same as ``revcol train``."""

from revcol_mm.cli.train import main

if __name__ == '__main__':
    main()
