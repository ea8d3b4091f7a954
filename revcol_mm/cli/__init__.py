"""The command ``revcol``, with a subcommand for each tool."""

import argparse
import sys
from importlib import import_module

COMMANDS = {  # module and description
    'train': ('revcol_mm.cli.train', 'train the model of a config'),
    'test': ('revcol_mm.cli.test', 'test a checkpoint: mIoU, AP, PQ, accuracy'),
    'predict': ('revcol_mm.cli.predict', 'predict on images and videos, and draw the predictions'),
    'export': ('revcol_mm.cli.export', 'export a model to ONNX, TorchScript or torch.export'),
    'publish': ('revcol_mm.cli.publish', 'prepare a checkpoint for publishing, also on the Hugging Face Hub'),
    'convert': ('revcol_mm.cli.convert', "convert checkpoints from and to the layout of RevCol's authors"),
    'check-data': ('revcol_mm.cli.check_data', 'check the data sets of a config'),
    'configs': ('revcol_mm.cli.configs', 'list the configs of revcol_mm, or print the path of one'),
    'doctor': ('revcol_mm.check_env', 'check what is installed, and how to install what is missing'),
}


def main() -> None:
    """Run the subcommand that the command line names."""
    lines = [f'{name:12} {what}' for name, (_, what) in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog='revcol',
        description='\n'.join([*lines, '', 'revcol COMMAND --help describes a command.']),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('command', choices=COMMANDS, metavar='COMMAND')
    parser.add_argument('arguments', nargs=argparse.REMAINDER, metavar='...')
    args = parser.parse_args()
    sys.argv = [f'revcol {args.command}', *args.arguments]
    module, _ = COMMANDS[args.command]
    sys.exit(import_module(module).main())
