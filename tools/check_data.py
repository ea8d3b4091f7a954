"""Check data: the same as ``revcol check-data``."""

from revcol_mm.cli.check_data import main

if __name__ == '__main__':
    main()
