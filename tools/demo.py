"""Predict on images and videos: the same as ``revcol predict``."""

from revcol_mm.cli.predict import main

if __name__ == '__main__':
    main()
