"""Export a model: ``revcol export``, without installing the package."""

from revcol_mm.cli.export import main

if __name__ == '__main__':
    main()
