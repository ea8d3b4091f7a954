"""List the configs of revcol_mm, or print the paths of some of them.

    revcol configs                          # list their names
    revcol configs dino_revcol_t_coco       # print a path, for _base_ in your own config

All commands accept such a name in place of a path: revcol train dino_revcol_t_coco.
"""

import argparse

from revcol_mm.config.find import config_folder, find_config
from revcol_mm.errors import errors_in_one_line


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('names', nargs='*', metavar='NAME', help='configs whose paths to print')
    args = parser.parse_args()
    with errors_in_one_line():
        if args.names:
            print(*map(find_config, args.names), sep='\n')
        else:
            print(*sorted(path.stem for path in config_folder().glob('*.py')), sep='\n')


if __name__ == '__main__':
    main()
