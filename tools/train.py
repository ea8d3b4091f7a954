"""Train a model: ``revcol train``, without installing the package."""

from revcol_mm.cli.train import main

if __name__ == '__main__':
    main()
