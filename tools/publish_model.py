"""Publish weights: the same as ``revcol publish``."""

from revcol_mm.cli.publish import main

if __name__ == '__main__':
    main()
