"""The command ``revcol``: a subcommand for each tool that users run."""

import argparse
import sys
from importlib import import_module

COMMANDS = {  # and their modules
    'train': 'revcol_mm.cli.train',
    'test': 'revcol_mm.cli.test',
    'predict': 'revcol_mm.cli.predict',
    'export': 'revcol_mm.cli.export',
    'publish': 'revcol_mm.cli.publish',
    'convert': 'revcol_mm.cli.convert',
    'check-data': 'revcol_mm.cli.check_data',
    'configs': 'revcol_mm.cli.configs',
    'doctor': 'revcol_mm.check_env',
}
DESCRIPTION = """\
train        train the model of a config
test         test a checkpoint: mIoU, AP, PQ, accuracy
predict      predict on images and videos, and draw the predictions
export       write a model as ONNX or torch.export
publish      make of a run's checkpoint one to publish, also for the Hugging Face Hub
convert      convert checkpoints from and to the layout of RevCol's authors
check-data   tell what is wrong with data
configs      list the configs that come with revcol_mm, or tell where one is
doctor       tell what is installed, and how to mend what is missing

revcol COMMAND --help says more of each.
"""


def main() -> None:
    """Run the subcommand that the command line names."""
    parser = argparse.ArgumentParser(
        prog='revcol', description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('command', choices=COMMANDS, metavar='COMMAND')
    parser.add_argument('arguments', nargs=argparse.REMAINDER, metavar='...')
    args = parser.parse_args()
    sys.argv = [f'revcol {args.command}', *args.arguments]
    sys.exit(import_module(COMMANDS[args.command]).main())
