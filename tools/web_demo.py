"""Serve a web page that shows a model's prediction on an image, and the feature maps of each column.

    python tools/web_demo.py --models CONFIG CHECKPOINT --models CONFIG2 CHECKPOINT2

A CONFIG is Python code and is run, so give only configs that you trust. Without --models, the page offers the
models that were trained below work_dirs/. Their configs are read as data; models that would need code to be
run are skipped, with the reason on the terminal.

Only this machine can connect, unless --host says otherwise, and neither the page nor the program connects
to other machines. There is no password: read docs/security.md before you use --host.
"""

import argparse
import base64
import html
import json
import socket
import sys
import tempfile
import time
import traceback
from functools import lru_cache
from io import BufferedReader, BytesIO, RawIOBase
from ipaddress import ip_address
from pathlib import Path
from threading import BoundedSemaphore, Lock
from typing import Any, Iterable
from urllib.parse import urlsplit

from revcol_mm.check_env import CORE, require_parts

require_parts('the web demo', (*CORE, 'mmcv', 'matplotlib', 'sklearn', 'werkzeug'))

import numpy as np
from PIL import Image
from werkzeug.exceptions import (
    BadRequest,
    ClientDisconnected,
    Forbidden,
    HTTPException,
    MethodNotAllowed,
    NotFound,
    RequestTimeout,
    ServiceUnavailable,
)
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

from revcol_mm.analysis.feature_maps import column_backbone, draw_feature_maps, feature_maps
from revcol_mm.apis import Inferencer, init_inferencer, pick_device
from revcol_mm.apis.image_header import check_image_size
from revcol_mm.apis.trained_models import Model, find_trained_models
from revcol_mm.config.command_line import read_config
from revcol_mm.errors import CheckpointError, errors_in_one_line

LOCAL = '127.0.0.1'
MAX_UPLOAD = 100 * 2**20  # bytes
# A phone's photo has about 12 million pixels. Semantic segmentation stores a score of every class for every
# pixel, which takes 10 GB for 2**24 pixels and the 150 classes of ADE20K.
MAX_PIXELS = 2**24
MAX_WAITING = 8  # requests that wait for the running prediction; their uploads are on disk
MAX_SECONDS = 60.0  # for receiving a request, and for sending each part of the answer
NUM_LOADED = 2  # models kept in memory
NUM_RECORDS = 50  # entries of a prediction that the page lists
HEADERS = {  # the policy forbids the browser to load anything from other machines
    'Content-Security-Policy': "default-src 'none'; connect-src 'self'; img-src data: blob:; "
    "script-src 'unsafe-inline'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    'X-Content-Type-Options': 'nosniff',
    'Cache-Control': 'no-store',
}


class WebDemo:
    """WSGI application that serves the page and predicts.

    Args:
        models: The models to choose from.
        device: See :func:`pick_device`.
        host_names: Host names under which it answers, besides 'localhost' and IP addresses. Answering under
            any name would let other sites use it by DNS rebinding.
    """

    def __init__(
        self, models: list[Model], device: str | None = None, host_names: Iterable[str] = ()
    ) -> None:
        self.models = models
        self._host_names = {'localhost', *(name.lower() for name in host_names)}
        self._places = BoundedSemaphore(1 + MAX_WAITING)
        self._lock = Lock()  # held while predicting
        self._load = lru_cache(NUM_LOADED)(
            lambda model: init_inferencer(model.read_config(), model.checkpoint, device)
        )
        options = (
            f'<option value="{i}">{html.escape(str(model))}</option>' for i, model in enumerate(models)
        )
        page = Path(__file__).with_suffix('.html').read_text()
        self._page = page.replace('<!-- models -->', ''.join(options))

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        """Answer a request, as WSGI specifies."""
        request = Request(environ)
        request.max_content_length = MAX_UPLOAD
        try:
            response = self._respond(request)
        except HTTPException as error:
            response = _json({'error': error.description}, error.code)
        except Exception:
            traceback.print_exc()
            response = _json({'error': 'the program failed; the reason is on its terminal'}, 500)
        response.headers.update(HEADERS)
        return response(environ, start_response)

    def _respond(self, request: Request) -> Response:
        if not self._is_own_name(request.host):
            raise BadRequest(
                f'{request.host} is not a name of this program: use localhost or the IP address, '
                'or give the name to --host'
            )
        methods = {'/': 'GET', '/predict': 'POST'}
        if request.path not in methods:
            raise NotFound
        if request.method != methods[request.path]:
            raise MethodNotAllowed
        if request.path == '/':
            return Response(self._page, mimetype='text/html')
        if not _is_of_own_page(request):
            raise Forbidden('only the page of this program may request predictions')
        if not self._places.acquire(blocking=False):  # before the upload is read
            raise ServiceUnavailable(f'busy: {MAX_WAITING} predictions are waiting; try again later')
        try:
            return _json(self.predict(request))
        except ClientDisconnected as error:
            raise RequestTimeout(f'the image did not arrive within {MAX_SECONDS:g} seconds') from error
        except (OSError, ValueError, CheckpointError, SystemExit) as error:  # the last: a package is missing
            return _json({'error': str(error)}, 400)
        finally:
            self._places.release()

    def _is_own_name(self, host: str) -> bool:
        try:
            name = (urlsplit(f'//{host}').hostname or '').removesuffix('.')
        except ValueError:  # invalid IPv6 address
            return False
        return name in self._host_names or _is_address(name)  # an address cannot be rebound

    def predict(self, request: Request) -> dict[str, Any]:
        """Predict on an uploaded image.

        Returns:
            Task, size of the image, seconds, records and, as data URLs, overlay and feature maps.

        Raises:
            ValueError: If there is no image, it cannot be read, or there is no such model.
            CheckpointError, OSError: If the model cannot be loaded.
        """
        choice, file = request.form.get('model', ''), request.files.get('image')
        if not (choice.isdecimal() and int(choice) < len(self.models)):
            raise ValueError(f'no model {choice!r}; choose one from the list')
        if file is None or not file.filename:
            raise ValueError('no image: drop one on the page, or choose a file')
        with self._lock, tempfile.TemporaryDirectory() as folder:
            path = Path(folder, 'image')
            file.save(path)
            inferencer = self._load(self.models[int(choice)])
            started = time.perf_counter()
            try:
                check_image_size(path, MAX_PIXELS)
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
            backbone = column_backbone(inferencer.model)
        except ValueError as error:
            return dict(note=str(error))
        picture, inputs = inferencer.network_input(image)
        figure = draw_feature_maps(picture, feature_maps(backbone, inputs, picture.shape[:2]))
        file = BytesIO()
        figure.savefig(file, dpi=110)
        return dict(feature_maps=_encode(file))


class _Handler(WSGIRequestHandler):
    """Request handler that closes a connection whose request does not arrive in time."""

    timeout = MAX_SECONDS

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = BufferedReader(_TimedSocket(self.connection, self.timeout))


class _TimedSocket(RawIOBase):
    """Reader of a socket with a deadline for everything that is read, so that slow senders are cut off."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection = connection
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        try:
            return self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(self._seconds)  # for writing


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _is_of_own_page(request: Request) -> bool:
    """Return whether a request is not from another site. Programs other than browsers send neither header."""
    site, origin = request.headers.get('Sec-Fetch-Site'), request.headers.get('Origin')
    if origin is not None and origin.partition('://')[2].lower() != request.host.lower():
        return False
    return site in (None, 'same-origin', 'none')


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
        help='model to offer; may be given several times; CONFIG is run, so give one that you trust',
    )
    parser.add_argument(
        '--work-dirs',
        type=Path,
        metavar='DIR',
        help='also offer the models that were trained below DIR and need no code to be run [work_dirs, if '
        'there are no --models]',
    )
    parser.add_argument('--device', help="such as 'cpu' or 'cuda:1' [a GPU if there is one]")
    parser.add_argument('--host', default=LOCAL, help=f'address to listen on [{LOCAL}: only this machine]')
    parser.add_argument('--port', type=int, default=7860, help='port to listen on; 0: any free one [7860]')
    return parser.parse_args()


def find_models(args: argparse.Namespace) -> list[Model]:
    """Return the models to offer.

    Raises:
        FileNotFoundError: If a file does not exist, or there is no model.
        ValueError: If a config cannot be read.
    """
    models = [Model(*model) for model in args.models]
    for model in models:
        read_config(model.config)
        if '://' not in model.checkpoint and not Path(model.checkpoint).is_file():
            raise FileNotFoundError(f'no checkpoint {model.checkpoint}')
    folder = args.work_dirs or (None if models else Path('work_dirs'))
    if folder:
        models += find_trained_models(folder, report_skipped)
    if not models:
        raise FileNotFoundError(
            f'no trained model below {folder} can be offered; give --models CONFIG CHECKPOINT'
        )
    return models


def report_skipped(folder: Path, reason: str) -> None:
    print(f'skipped {folder}: {reason}', file=sys.stderr)


def own_names(host: str) -> list[str]:
    """Return the names of this machine under which others may call it."""
    names = [host, socket.gethostname()]
    if host not in (LOCAL, '::1', 'localhost'):
        names.append(socket.getfqdn())  # may ask a name server
    return names


def main() -> None:
    args = parse_args()
    with errors_in_one_line():
        if not 0 <= args.port < 2**16:
            raise ValueError(f'--port must be from 0 to {2**16 - 1}, got {args.port}')
        pick_device(args.device)
        app = WebDemo(find_models(args), args.device, own_names(args.host))
    server = make_server(args.host, args.port, app, threaded=True, request_handler=_Handler)
    host = f'[{args.host}]' if ':' in args.host else args.host
    print(f'{len(app.models)} model(s) at http://{host}:{server.server_port}, until Ctrl-C', flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == '__main__':
    main()
