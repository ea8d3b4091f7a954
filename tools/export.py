"""Export a model: the same as ``revcol export``."""

from revcol_mm.cli.export import main

if __name__ == '__main__':
    main()
