"""tools/web_demo.py under attack: foreign host names and sites, slow clients, crowds, and large images."""

# ruff: noqa: F811  fixtures are imported

import contextlib
import io
import re
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from .image_bomb import write_image_bomb
from .web_demo_fixtures import address, image, models, tool  # noqa: F401

HAS_IPV6 = Path('/proc/net/if_inet6').exists() or sys.platform != 'linux'


@pytest.fixture
def serve(tool, models):
    """Serve the page from a thread of this process: (host) -> (application, port)."""
    from werkzeug.serving import make_server

    servers = []

    def start(host='127.0.0.1'):
        if ':' in host and not HAS_IPV6:
            pytest.skip('no IPv6 here')
        app = tool['WebDemo']([tool['Model'](*models[0])], 'cpu', ['box'])
        server = make_server(host, 0, app, threaded=True, request_handler=tool['_Handler'])
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        return app, server.server_port

    yield start
    for server in servers:
        server.shutdown()


def ask(port, head, body=b'', host='127.0.0.1'):
    """Send a raw request; return status and text of the answer."""
    with socket.create_connection((host, port), timeout=300) as connection:
        connection.sendall('\r\n'.join([*head, '', '']).encode() + body)
        answer = b''.join(iter(lambda: connection.recv(65536), b''))
    head, _, text = answer.partition(b'\r\n\r\n')
    return int(head.split()[1]), text.decode()


@pytest.mark.parametrize(
    'name',
    [
        'localhost',
        'LOCALHOST:7860',
        'localhost.',
        '127.0.0.1:7860',
        '[::1]:7860',
        '192.168.3.4',
        'box',
        'Box:80',
    ],
)
def test_own_names_and_addresses_are_answered(name, serve):
    assert ask(serve()[1], ['GET / HTTP/1.1', f'Host: {name}'])[0] == 200


@pytest.mark.parametrize(
    'name',
    [
        'elsewhere.example',
        'localhost.elsewhere.example',
        '127.0.0.1.nip.io',
        'localhost@evil',
        '[::1',
        '0x7f.1',
        '',
    ],
)
@pytest.mark.parametrize('host', ['127.0.0.1', 'localhost', '::1'])
def test_other_names_are_refused(name, host, serve):
    status, text = ask(serve(host)[1], ['GET / HTTP/1.1', f'Host: {name}'], host=host)
    assert status == 400 and '<option' not in text


def test_second_host_header_and_absolute_url_are_refused(serve):
    _, port = serve()
    assert ask(port, ['GET / HTTP/1.1', 'Host: localhost', 'Host: elsewhere.example'])[0] == 400
    assert ask(port, ['GET http://elsewhere.example/ HTTP/1.1', 'Host: localhost'])[0] == 400


@pytest.mark.parametrize(
    'header, status',
    [
        ('Origin: http://elsewhere.example', 403),
        ('Origin: http://localhost:1', 403),
        ('Origin: http://localhost', 403),
        ('Origin: null', 403),
        ('Origin: http://[', 403),
        ('Sec-Fetch-Site: cross-site', 403),
        ('Sec-Fetch-Site: same-site', 403),
        ('Origin: http://localhost:{port}', 400),  # 400: no image
        ('Sec-Fetch-Site: same-origin', 400),
        ('X-None: none', 400),
    ],
)
def test_only_its_own_page_may_request_predictions(header, status, serve):
    _, port = serve()
    head = [
        'POST /predict HTTP/1.1',
        f'Host: localhost:{port}',
        'Content-Length: 0',
        header.format(port=port),
    ]
    found, text = ask(port, head)
    assert found == status and ('only the page' in text) == (status == 403)


@pytest.mark.parametrize('sent', [b'', b'GET', b'GET / HTTP/1.1\r\nHost: localhost\r\n'])
def test_silent_connection_is_closed(sent, serve, tool, monkeypatch):
    monkeypatch.setattr(tool['_Handler'], 'timeout', 0.5)
    with socket.create_connection(('127.0.0.1', serve()[1]), timeout=20) as connection:
        connection.sendall(sent)
        with contextlib.suppress(ConnectionError):
            while connection.recv(65536):  # raises a TimeoutError after 20 s
                pass


@pytest.mark.parametrize(
    'head', ['', 'POST /predict HTTP/1.1\r\nHost: localhost\r\n{type}Content-Length: 1000\r\n\r\n']
)
def test_slow_request_is_closed(head, serve, tool, monkeypatch):
    """By the server's clock a byte arrives every second, so that the connection is never silent."""
    clock, is_accepted = SimpleNamespace(now=0), threading.Event()

    def monotonic():
        is_accepted.set()
        return clock.now

    names = tool['main'].__globals__
    monkeypatch.setitem(names, 'time', SimpleNamespace(monotonic=monotonic))
    monkeypatch.setitem(names, 'MAX_WAITING', 0)
    _, port = serve()
    kind = 'Content-Type: multipart/form-data; boundary=x\r\n'
    # If the server waits on, recv raises a TimeoutError, in half of the time after which silence is closed.
    with socket.create_connection(('127.0.0.1', port), timeout=tool['MAX_SECONDS'] / 2) as connection:
        assert is_accepted.wait(300)
        with contextlib.suppress(ConnectionError):
            connection.sendall(head.format(type=kind).encode())
            for _ in range(int(tool['MAX_SECONDS']) + 10):
                clock.now += 1
                connection.sendall(b'x')
            while connection.recv(65536):
                pass
    head = ['POST /predict HTTP/1.1', 'Host: localhost', kind.strip(), 'Content-Length: 0']
    assert ask(port, head)[0] == 400  # 503 if the slow request had kept its place


def form(path):
    """Return content type and body of a request of the page."""
    body, disposition = io.BytesIO(), 'Content-Disposition: form-data; name='
    body.write(f'--x\r\n{disposition}"model"\r\n\r\n0\r\n--x\r\n'.encode())
    body.write(f'{disposition}"image"; filename="{path.name}"\r\n\r\n'.encode() + path.read_bytes())
    body.write(b'\r\n--x--\r\n')
    return 'Content-Type: multipart/form-data; boundary=x', body.getvalue()


def upload(port, path):
    kind, body = form(path)
    head = ['POST /predict HTTP/1.1', 'Host: localhost', kind, f'Content-Length: {len(body)}']
    return ask(port, head, body)


def test_requests_beyond_the_queue_are_refused_before_their_upload(serve, tool, image, monkeypatch):
    taken = threading.Semaphore(0)

    class Places(threading.BoundedSemaphore):
        def acquire(self, *args, **options):
            has_place = super().acquire(*args, **options)
            if has_place:
                taken.release()
            return has_place

    monkeypatch.setitem(tool['main'].__globals__, 'MAX_WAITING', 2)
    monkeypatch.setitem(tool['main'].__globals__, 'BoundedSemaphore', Places)
    app, port = serve()
    head = ['POST /predict HTTP/1.1', 'Host: localhost', form(image)[0]]
    with ThreadPoolExecutor(3) as pool:
        with app._lock:  # as while predicting
            answers = [pool.submit(upload, port, image) for _ in range(3)]
            for _ in range(3):
                assert taken.acquire(timeout=300)
            status, text = ask(port, [*head, f'Content-Length: {90 * 2**20}'])  # without body
            assert status == 503 and 'busy: 2 predictions are waiting' in text
            assert ask(port, ['GET / HTTP/1.1', 'Host: localhost'])[0] == 200
        assert [answer.result()[0] for answer in answers] == [200] * 3
    assert ask(port, [*head, 'Content-Length: 0'])[0] == 400  # the queue is free again


def test_large_upload_is_refused_before_it_is_read(serve, tool):
    head = ['POST /predict HTTP/1.1', 'Host: localhost', 'Content-Type: multipart/form-data; boundary=x']
    assert ask(serve()[1], [*head, f'Content-Length: {tool["MAX_UPLOAD"] + 1}'])[0] == 413


@pytest.mark.parametrize(
    'host, printed', [('127.0.0.1', '127.0.0.1'), ('::1', '[::1]'), ('localhost', 'localhost')]
)
def test_printed_url_answers(host, printed, tool, models, monkeypatch, capsys):
    from werkzeug.serving import BaseWSGIServer

    def serve_forever(server):
        (url,) = re.findall(r'http://\S+:\d+', capsys.readouterr().out)
        assert url == f'http://{printed}:{server.server_port}'
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert ask(server.server_port, ['GET / HTTP/1.1', f'Host: {url[7:]}'], host=host)[0] == 200

    if ':' in host and not HAS_IPV6:
        pytest.skip('no IPv6 here')
    monkeypatch.setattr(BaseWSGIServer, 'serve_forever', serve_forever)
    monkeypatch.setattr(sys, 'argv', ['web_demo.py', '--models', *models[0], '--host', host, '--port', '0'])
    tool['main']()


def peak_mib(pid):
    """Return the peak memory of a process on Linux."""
    return int(re.search(r'VmHWM:\s+(\d+)', Path(f'/proc/{pid}/status').read_text())[1]) / 1024


@pytest.mark.skipif(sys.platform != 'linux', reason='needs /proc')
def test_image_bomb_is_refused_without_decoding_it(address, image, tmp_path):
    url, program = address
    path = write_image_bomb(tmp_path / 'bomb.png')
    assert path.stat().st_size < 2**20

    port = int(url.rpartition(':')[2])
    assert upload(port, image)[0] == 200
    before = peak_mib(program.pid)
    status, text = upload(port, path)
    assert peak_mib(program.pid) - before < 300  # decoded it would take 2600
    assert status == 400
    assert 'bomb.png: 30000 x 30000 are 900.0 million pixels, more than the limit of 16.8 million' in text
