"""Predict on images and videos: ``revcol predict``, without installing the package."""

from revcol_mm.cli.predict import main

if __name__ == '__main__':
    main()
