"""List the configs that come with revcol_mm, or tell where some of them are.

    revcol configs                          # their names
    revcol configs dino_revcol_t_coco       # where it is, for _base_ of a config of your own

Wherever a config is asked for, such a name does as well: revcol train dino_revcol_t_coco.
"""

import argparse

from revcol_mm.config.find import config_folder, find_config
from revcol_mm.errors import errors_in_one_line


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('names', nargs='*', metavar='NAME')
    args = parser.parse_args()
    with errors_in_one_line():
        if args.names:
            print(*map(find_config, args.names), sep='\n')
        else:
            print(*sorted(path.stem for path in config_folder().glob('*.py')), sep='\n')


if __name__ == '__main__':
    main()
