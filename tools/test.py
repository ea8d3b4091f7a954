"""Test a checkpoint: the same as ``revcol test``."""

from revcol_mm.cli.test import main

if __name__ == '__main__':
    main()
