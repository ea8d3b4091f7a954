"""Publish weights: ``revcol publish``, without installing the package."""

from revcol_mm.cli.publish import main

if __name__ == '__main__':
    main()
