"""Test a checkpoint: ``revcol test``, without installing the package."""

from revcol_mm.cli.test import main

if __name__ == '__main__':
    main()
