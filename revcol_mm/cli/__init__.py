"""The command ``revcol``: a subcommand for each tool that users run."""

import argparse
import sys
from importlib import import_module

COMMANDS = {  # with their modules
    'train': ('revcol_mm.cli.train', 'train the model of a config'),
    'test': ('revcol_mm.cli.test', 'test a checkpoint: mIoU, AP, PQ, accuracy'),
    'predict': ('revcol_mm.cli.predict', 'predict on images and videos, and draw the predictions'),
    'export': ('revcol_mm.cli.export', 'write a model as ONNX or torch.export'),
    'publish': ('revcol_mm.cli.publish', 'make a checkpoint ready to publish, also on the Hugging Face Hub'),
    'convert': ('revcol_mm.cli.convert', "convert checkpoints from and to the layout of RevCol's authors"),
    'check-data': ('revcol_mm.cli.check_data', 'tell what is wrong with data'),
    'configs': ('revcol_mm.cli.configs', 'list the configs that come with revcol_mm, or tell where one is'),
    'doctor': ('revcol_mm.check_env', 'tell what is installed, and how to mend what is missing'),
}


def main() -> None:
    """Run the subcommand that the command line names."""
    lines = [f'{name:12} {what}' for name, (_, what) in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog='revcol',
        description='\n'.join([*lines, '', 'revcol COMMAND --help says more of each.']),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('command', choices=COMMANDS, metavar='COMMAND')
    parser.add_argument('arguments', nargs=argparse.REMAINDER, metavar='...')
    args = parser.parse_args()
    sys.argv = [f'revcol {args.command}', *args.arguments]
    module, _ = COMMANDS[args.command]
    sys.exit(import_module(module).main())
