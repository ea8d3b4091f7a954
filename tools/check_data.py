"""Check data: ``revcol check-data``, without installing the package."""

from revcol_mm.cli.check_data import main

if __name__ == '__main__':
    main()
