"""A page in the browser: drop an image, choose a model, see a prediction and the feature maps of each column.

    python tools/web_demo.py --models CONFIG CHECKPOINT --models CONFIG2 CHECKPOINT2

Without --models it offers what has been trained below work_dirs/. It answers this machine alone, unless
--host says otherwise, and neither the page nor the program asks anything of another machine.
"""

import argparse
import base64
import html
import json
import tempfile
import time
import traceback
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from revcol_mm.check_env import CORE, require_parts

require_parts('the web demo', (*CORE, 'mmcv', 'matplotlib', 'sklearn', 'werkzeug'))

import numpy as np
from PIL import Image
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

from revcol_mm.analysis.feature_maps import draw_feature_maps, feature_maps, revcol_backbone
from revcol_mm.apis import Inferencer, init_inferencer, pick_device
from revcol_mm.engine.launch import read_config
from revcol_mm.models.checkpoint import CheckpointError
from revcol_mm.preflight import errors_in_one_line

LOCAL = '127.0.0.1'
MAX_UPLOAD = 100 * 2**20  # bytes
NUM_LOADED = 2  # models in memory at once
NUM_RECORDS = 50  # of a prediction that the page lists
HEADERS = {  # the browser, too, is told to load nothing from elsewhere
    'Content-Security-Policy': "default-src 'none'; connect-src 'self'; img-src data: blob:; "
    "script-src 'unsafe-inline'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    'X-Content-Type-Options': 'nosniff',
    'Cache-Control': 'no-store',
}


class Model(NamedTuple):
    """What can be chosen."""

    config: str
    checkpoint: str

    def __str__(self) -> str:
        path = Path(self.checkpoint)
        return f'{Path(self.config).stem}, {path.parent.name}/{path.name}'


def trained_models(folder: Path) -> list[Model]:
    """The newest checkpoint, and the config, of every training below a folder."""
    models = []
    for record in sorted(folder.rglob('last_checkpoint')):  # MMEngine's
        checkpoint, configs = Path(record.read_text().strip()), list(record.parent.glob('*.py'))
        if checkpoint.is_file() and len(configs) == 1:
            models.append(Model(str(configs[0]), str(checkpoint)))
    return models


class WebDemo:
    """The page and what it asks for, as a WSGI application.

    Args:
        models: What can be chosen.
        device: See :func:`pick_device`.
        trusted_hosts: Names by which a browser may call it: another site's, pointed at this machine, is not
            among them. None: any.
    """

    def __init__(
        self, models: list[Model], device: str | None = None, trusted_hosts: list[str] | None = None
    ) -> None:
        self.models = models
        self.trusted_hosts = trusted_hosts
        self._lock = Lock()  # one prediction at a time
        self._load = lru_cache(NUM_LOADED)(lambda model: init_inferencer(*model, device))
        options = (
            f'<option value="{i}">{html.escape(str(model))}</option>' for i, model in enumerate(models)
        )
        page = Path(__file__).with_suffix('.html').read_text()
        self._page = page.replace('<!-- models -->', ''.join(options))

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        """WSGI's entry point."""
        request = Request(environ)
        request.max_content_length = MAX_UPLOAD
        request.trusted_hosts = self.trusted_hosts
        try:
            response = self._respond(request)
        except HTTPException as error:
            response = _json({'error': error.description}, error.code)
        except Exception:
            traceback.print_exc()
            response = _json({'error': 'the program failed; its terminal tells why'}, 500)
        response.headers.update(HEADERS)
        return response(environ, start_response)

    def _respond(self, request: Request) -> Response:
        request.host  # noqa: B018 - refuses hosts that are not trusted
        methods = {'/': 'GET', '/predict': 'POST'}
        if request.path not in methods:
            raise NotFound
        if request.method != methods[request.path]:
            raise MethodNotAllowed
        if request.path == '/':
            return Response(self._page, mimetype='text/html')
        try:
            return _json(self.predict(request))
        except (OSError, ValueError, CheckpointError, SystemExit) as error:  # that of what is not installed
            return _json({'error': str(error)}, 400)

    def predict(self, request: Request) -> dict[str, Any]:
        """Predict on an uploaded image.

        Returns:
            The task, seconds that it took, records and, as data URLs, the overlay and the feature maps.

        Raises:
            ValueError: If there is no image or none that can be read, or no such model.
            CheckpointError, OSError: If the model cannot be loaded.
        """
        choice, file = request.form.get('model', ''), request.files.get('image')
        if not (choice.isdecimal() and int(choice) < len(self.models)):
            raise ValueError(f'no model {choice!r}; choose one of the list')
        if file is None or not file.filename:
            raise ValueError('no image: drop one on the page, or choose a file')
        with self._lock, tempfile.TemporaryDirectory() as folder:
            path = Path(folder, 'image')
            file.save(path)
            inferencer = self._load(self.models[int(choice)])
            started = time.perf_counter()
            try:
                image = inferencer.read(path)
                samples = inferencer.predict([image])
            except ValueError as error:
                raise ValueError(f'{file.filename}: {error}') from error
            seconds = time.perf_counter() - started
            (overlay,) = inferencer.draw([image], samples)
            records = inferencer.records(samples[0])
            return dict(
                task=inferencer.task,
                size=image.shape[1::-1],
                seconds=seconds,
                num_records=len(records),
                records=[{key: record[key] for key in ('name', 'score')} for record in records[:NUM_RECORDS]],
                overlay=_data_url(overlay),
                **self._feature_maps(inferencer, image),
            )

    @staticmethod
    def _feature_maps(inferencer: Inferencer, image: np.ndarray) -> dict[str, str]:
        try:
            backbone = revcol_backbone(inferencer.model)
        except ValueError as error:
            return dict(note=str(error))
        picture, inputs = inferencer.network_input(image)
        figure = draw_feature_maps(picture, feature_maps(backbone, inputs, picture.shape[:2]))
        file = BytesIO()
        figure.savefig(file, dpi=110)
        return dict(feature_maps=_encode(file))


def _json(content: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(content), status, mimetype='application/json')


def _data_url(image: np.ndarray) -> str:
    file = BytesIO()
    Image.fromarray(image).save(file, 'png')
    return _encode(file)


def _encode(file: BytesIO) -> str:
    return 'data:image/png;base64,' + base64.b64encode(file.getvalue()).decode()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--models',
        nargs=2,
        action='append',
        default=[],
        metavar=('CONFIG', 'CHECKPOINT'),
        help='a model to offer; may be given several times',
    )
    parser.add_argument(
        '--work-dirs',
        type=Path,
        metavar='DIR',
        help='offer all that was trained below DIR, too [work_dirs, if there are no --models]',
    )
    parser.add_argument('--device', help="such as 'cpu' or 'cuda:1' [a GPU where there is one]")
    parser.add_argument('--host', default=LOCAL, help=f'address to answer at [{LOCAL}: this machine alone]')
    parser.add_argument('--port', type=int, default=7860, help='0: any that is free [7860]')
    return parser.parse_args()


def find_models(args: argparse.Namespace) -> list[Model]:
    """The models that a command line offers.

    Raises:
        FileNotFoundError: If one is not there, or there is none.
        ValueError: If a config is wrong.
    """
    models = [Model(*model) for model in args.models]
    for model in models:
        read_config(model.config)
        if '://' not in model.checkpoint and not Path(model.checkpoint).is_file():
            raise FileNotFoundError(f'no checkpoint {model.checkpoint}')
    folder = args.work_dirs or (None if models else Path('work_dirs'))
    if folder:
        models += trained_models(folder)
    if not models:
        raise FileNotFoundError(f'nothing has been trained below {folder}; name --models CONFIG CHECKPOINT')
    return models


def main() -> None:
    args = parse_args()
    with errors_in_one_line():
        pick_device(args.device)
        hosts = ['localhost', LOCAL] if args.host == LOCAL else None
        app = WebDemo(find_models(args), args.device, hosts)
    server = make_server(args.host, args.port, app, threaded=True)
    print(f'{len(app.models)} model(s) at http://{args.host}:{server.server_port}, until Ctrl-C', flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == '__main__':
    main()
