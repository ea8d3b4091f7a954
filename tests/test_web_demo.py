"""tools/web_demo.py: what its program answers, and the page in a real browser."""

import base64
import contextlib
import copy
import io
import json
import re
import runpy
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from revcol_mm.apis import init_model

from .subprocesses import REPO, run
from .test_image_header import bomb

Client = pytest.importorskip('werkzeug.test').Client
TOOL = REPO / 'tools/web_demo.py'
REVCOL = REPO / 'configs/upernet_revcol_nano_sample.py'
PLAIN = REPO / 'configs/baselines/upernet_convnext_sample.py'
CHROMIUM, CHROMEDRIVER = (shutil.which(name) for name in ('chromium', 'chromedriver'))
HAS_IPV6 = Path('/proc/net/if_inet6').exists() or sys.platform != 'linux'
FEATURE_MAPS = (700, 400)  # pixels that a figure of 4 x 4 maps has at least


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """Configs and checkpoints: a RevCol and a network without columns, neither of them trained."""
    folder = tmp_path_factory.mktemp('checkpoints')
    models = []
    for config in (REVCOL, PLAIN):
        torch.manual_seed(0)
        checkpoint = folder / f'{config.stem}.pth'
        torch.save(init_model(config, device='cpu').state_dict(), checkpoint)
        models.append((str(config), str(checkpoint)))
    return models


@pytest.fixture(scope='module')
def tool():
    return runpy.run_path(str(TOOL))


@pytest.fixture(scope='module')
def client(tool, models):
    offered = [tool['Model'](*model) for model in models]
    offered.append(tool['Model'](str(REVCOL), str(REPO / 'README.md')))
    return Client(tool['WebDemo'](offered, 'cpu', ['localhost']))


@pytest.fixture
def image(sample_data):
    return sample_data / 'ade20k/images/validation/scene_00000.jpg'


def post(client, model='0', **form):
    return client.post('/predict', data=dict(form, model=model))


def decode(url):
    head, _, data = url.partition(',')
    assert head == 'data:image/png;base64'
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert('RGB'))


def is_feature_maps(picture):
    height, width = picture.shape[:2]
    return width >= FEATURE_MAPS[0] and height >= FEATURE_MAPS[1] and num_colours(picture) > 500


def num_colours(picture):
    return len(np.unique(picture.reshape(-1, 3), axis=0))


def test_the_answer_has_the_overlay_what_was_predicted_and_the_feature_maps(client, image):
    response = post(client, image=(image.open('rb'), image.name))
    answer = response.json
    original = np.asarray(Image.open(image).convert('RGB'))
    overlay = decode(answer['overlay'])
    assert overlay.shape == original.shape and not np.array_equal(overlay, original)
    assert answer['task'] == 'semantic segmentation'
    assert answer['size'] == [original.shape[1], original.shape[0]]
    assert sum(record['score'] for record in answer['records']) == pytest.approx(1)
    assert is_feature_maps(decode(answer['feature_maps']))


def test_a_network_without_columns_predicts_and_says_why_it_has_no_maps(client, image):
    answer = post(client, '1', image=(image.open('rb'), image.name)).json
    assert decode(answer['overlay']).std() > 0 and 'feature_maps' not in answer
    assert answer['note'] == 'the backbone of the model has no columns: it is a ConvNeXt'


@pytest.mark.parametrize(
    'model, content, message',
    [
        ('0', None, 'no image: drop one on the page'),
        ('0', b'no image', '<b>.jpg: not an image, or a broken one'),
        ('3', b'', "no model '3'"),
        ('-1', b'', "no model '-1'"),
        ('', b'', "no model ''"),
        ('2', b'', 'cannot read'),  # a checkpoint that is none
    ],
)
def test_what_is_wrong_is_an_answer(model, content, message, client):
    form = {} if content is None else {'image': (io.BytesIO(content), '<b>.jpg')}
    response = post(client, model, **form)
    assert response.status_code == 400 and message in response.json['error']


def test_the_program_answers_nothing_but_its_page_and_no_host_but_its_own(client):
    page = client.get('/')
    assert page.status_code == 200 and page.mimetype == 'text/html'
    assert page.text.count('<option') == 3 and 'upernet_convnext_sample' in page.text
    assert "default-src 'none'" in page.headers['Content-Security-Policy']
    assert not re.search(r'(?:src|href|url)\s*[=(]\s*["\']?(?:https?:)?//', page.text)
    assert client.get('/', base_url='http://elsewhere.example').status_code == 400
    assert client.get('/../web_demo.py').status_code == 404 and client.get('/predict').status_code == 405


@pytest.fixture(scope='module')
def read():
    return lru_cache(lambda config: Config.fromfile(config, format_python_code=False))


@pytest.fixture
def trained(models, read, tmp_path):
    """Makes a work dir of a training: its config as it was recorded, its checkpoint, and where that is."""

    def write(name, checkpoint=models[0][1], config=models[0][0], **changes):
        folder = tmp_path / 'work_dirs' / name
        folder.mkdir(parents=True)
        cfg = copy.deepcopy(read(config))
        cfg.merge_from_dict({key.replace('__', '.'): value for key, value in changes.items()})
        cfg.dump(folder / 'config.py')
        shutil.copy(checkpoint, folder / 'iter_3.pth')
        (folder / 'last_checkpoint').write_text(str(folder / 'iter_3.pth'))
        return folder

    return write


def test_it_offers_what_has_been_trained_below_a_folder(tool, models, trained, tmp_path, image):
    folders = [trained('a'), trained('b/c', *models[1][::-1])]
    found = tool['trained_models'](tmp_path / 'work_dirs')
    assert found == [(str(folder / 'config.py'), str(folder / 'iter_3.pth')) for folder in folders]
    answer = post(Client(tool['WebDemo'](found, 'cpu')), image=(image.open('rb'), image.name)).json
    assert is_feature_maps(decode(answer['feature_maps']))


def test_what_would_run_code_of_others_or_is_not_there_is_told_and_the_others_are_offered(
    tool, trained, tmp_path, capsys
):
    good = trained('good')
    code = f'open({str(tmp_path / "it_ran")!r}, "w")'
    trained('call').joinpath('config.py').write_text(f'a = {code}\n')
    trained('popen', model__decode_head__type='subprocess.Popen')
    trained('imports', custom_imports=dict(imports=['revcol_mm', 'evil']))
    (trained('outside') / 'last_checkpoint').write_text(str(tmp_path / 'secret.pth'))
    (tmp_path / 'secret.pth').write_text('secret')
    (trained('above') / 'last_checkpoint').write_text(f'{tmp_path}/work_dirs/../secret.pth')
    (trained('link') / 'iter_3.pth').unlink()
    (tmp_path / 'work_dirs/link/iter_3.pth').symlink_to(tmp_path / 'secret.pth')
    (trained('gone') / 'iter_3.pth').unlink()
    (trained('two') / 'other.py').touch()
    (trained('empty') / 'config.py').write_text('')
    (trained('binary') / 'last_checkpoint').write_bytes(b'\xff\0')
    (trained('folder') / 'last_checkpoint').unlink()
    (tmp_path / 'work_dirs/folder/last_checkpoint').mkdir()

    found = tool['trained_models'](tmp_path / 'work_dirs')
    assert found == [(str(good / 'config.py'), str(good / 'iter_3.pth'))]
    told = capsys.readouterr().err.splitlines()
    assert not (tmp_path / 'it_ran').exists() and all(line.startswith('left out ') for line in told)
    for name, message in {
        'call': 'is no literal',
        'popen': "model.decode_head.type is 'subprocess.Popen'",
        'imports': "custom_imports names 'evil'",
        'outside': 'is not in',
        'above': 'is not in',
        'link': 'is not in',
        'gone': 'no checkpoint',
        'two': '2 configs beside',
        'empty': 'default_scope is None',
        'binary': '',
        'folder': '',
    }.items():
        (line,) = [line for line in told if line.startswith(f'left out {tmp_path}/work_dirs/{name}: ')]
        assert message in line
        assert name in ('gone', 'empty', 'binary', 'folder') or '--models' in line


def test_a_config_that_has_changed_since_it_was_offered_does_not_run(tool, trained, tmp_path, image):
    folder = trained('a')
    client = Client(tool['WebDemo'](tool['trained_models'](tmp_path / 'work_dirs'), 'cpu'))
    (folder / 'config.py').write_text(f'a = open({str(tmp_path / "it_ran")!r}, "w")\n')
    response = post(client, image=(image.open('rb'), image.name))
    assert response.status_code == 400 and 'is no literal' in response.json['error']
    assert not (tmp_path / 'it_ran').exists()


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--models', 'nothing.py', 'nothing.pth'], 'no config nothing.py'),
        (['--models', REVCOL, 'nothing.pth'], 'no checkpoint nothing.pth'),
        (['--work-dirs', REPO / 'docs'], 'nothing has been trained below'),
        (['--device', 'cuda:99'], "device 'cuda:99' is none of cpu"),
        (['--port', '65536'], '--port takes 0 to 65535, got 65536'),
    ],
)
def test_a_mistake_is_an_error_in_one_line(arguments, message, tool, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['web_demo.py', *map(str, arguments)])
    with pytest.raises(SystemExit, match=f'^error: .*{message}'):
        tool['main']()


# Attacks on the page, over real sockets.


@pytest.fixture
def serve(tool, models):
    """Serves a WebDemo from a thread of this process: (host) -> (the application, its port)."""
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
    """Send a request as it is; returns the status and the text of the answer."""
    with socket.create_connection((host, port), timeout=30) as connection:
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
def test_it_answers_to_its_names_and_to_addresses(name, serve):
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
def test_it_answers_to_no_other_name_whatever_it_listens_to(name, host, serve):
    status, text = ask(serve(host)[1], ['GET / HTTP/1.1', f'Host: {name}'], host=host)
    assert status == 400 and '<option' not in text


def test_a_second_name_or_an_absolute_url_is_another_name_too(serve):
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
        ('Origin: http://localhost:{port}', 400),  # 400: there is no image
        ('Sec-Fetch-Site: same-origin', 400),
        ('X-None: none', 400),
    ],
)
def test_only_its_own_page_may_ask_it_to_predict(header, status, serve):
    _, port = serve()
    head = [
        'POST /predict HTTP/1.1',
        f'Host: localhost:{port}',
        'Content-Length: 0',
        header.format(port=port),
    ]
    found, text = ask(port, head)
    assert found == status and ('only the page' in text) == (status == 403)


def ended_after(connection):
    """Seconds until the other side ends a connection."""
    begun = time.monotonic()
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        pass
    return time.monotonic() - begun


@pytest.mark.parametrize('sent', [b'', b'GET', b'GET / HTTP/1.1\r\nHost: localhost\r\n'])
def test_a_connection_that_falls_silent_is_ended(sent, serve, tool, monkeypatch):
    monkeypatch.setattr(tool['_Handler'], 'timeout', 0.5)
    with socket.create_connection(('127.0.0.1', serve()[1]), timeout=20) as connection:
        connection.sendall(sent)
        assert 0.3 < ended_after(connection) < 10


@pytest.mark.parametrize(
    'head', ['', 'POST /predict HTTP/1.1\r\nHost: localhost\r\n{type}Content-Length: 1000\r\n\r\n']
)
def test_a_request_that_dribbles_is_ended(head, serve, tool, monkeypatch):
    monkeypatch.setattr(tool['_Handler'], 'timeout', 1.0)
    app, port = serve()
    with socket.create_connection(('127.0.0.1', port), timeout=20) as connection:
        connection.sendall(head.format(type='Content-Type: multipart/form-data; boundary=x\r\n').encode())
        begun = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - begun < 10:
                connection.sendall(b'x')  # more often than any limit on silence
                time.sleep(0.05)
        assert 0.8 < time.monotonic() - begun < 8
    assert app._places.acquire(timeout=5) and app._places._value == tool['MAX_WAITING']


def form(path, model='0'):
    """The type and the body of what the page sends."""
    body, disposition = io.BytesIO(), 'Content-Disposition: form-data; name='
    body.write(f'--x\r\n{disposition}"model"\r\n\r\n{model}\r\n--x\r\n'.encode())
    body.write(f'{disposition}"image"; filename="{path.name}"\r\n\r\n'.encode() + path.read_bytes())
    body.write(b'\r\n--x--\r\n')
    return 'Content-Type: multipart/form-data; boundary=x', body.getvalue()


def upload(port, path):
    kind, body = form(path)
    head = ['POST /predict HTTP/1.1', 'Host: localhost', kind, f'Content-Length: {len(body)}']
    return ask(port, head, body)


def test_when_too_many_wait_further_ones_are_sent_away_before_their_upload_is_read(
    serve, tool, image, monkeypatch
):
    monkeypatch.setitem(tool['main'].__globals__, 'MAX_WAITING', 2)
    app, port = serve()
    head = ['POST /predict HTTP/1.1', 'Host: localhost', form(image)[0]]
    with ThreadPoolExecutor(3) as pool:
        with app._lock:  # as if one took long
            answers = [pool.submit(upload, port, image) for _ in range(3)]
            deadline = time.monotonic() + 30
            while app._places._value:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            status, text = ask(port, [*head, f'Content-Length: {90 * 2**20}'])  # of which nothing is sent
            assert status == 503 and 'busy: 2 predictions wait already' in text
            assert ask(port, ['GET / HTTP/1.1', 'Host: localhost'])[0] == 200
        assert [answer.result()[0] for answer in answers] == [200] * 3
    assert ask(port, [*head, 'Content-Length: 0'])[0] == 400  # there is room again


def test_an_upload_that_is_too_large_is_refused_before_it_is_read(serve, tool):
    head = ['POST /predict HTTP/1.1', 'Host: localhost', 'Content-Type: multipart/form-data; boundary=x']
    assert ask(serve()[1], [*head, f'Content-Length: {tool["MAX_UPLOAD"] + 1}'])[0] == 413


@pytest.mark.parametrize(
    'host, printed', [('127.0.0.1', '127.0.0.1'), ('::1', '[::1]'), ('localhost', 'localhost')]
)
def test_the_url_that_is_printed_answers(host, printed, tool, models, monkeypatch, capsys):
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


@pytest.fixture
def address(models):
    """Where the program answers, started as a user starts it."""
    options = [word for model in models for word in ('--models', *model)]
    command = [sys.executable, TOOL, *options, '--port', '0', '--device', 'cpu']
    program = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=REPO
    )
    try:
        found = (re.search(r'http://127\.0\.0\.1:\d+', line) for line in program.stdout)
        address = next((match[0] for match in found if match), None)  # the stream goes on while it runs
        assert address, f'it ended with exit status {program.wait()}'
        yield address, program
    finally:
        program.terminate()
        program.wait(30)


def peak_mib(pid):
    """The most memory that a process has had, of Linux."""
    return int(re.search(r'VmHWM:\s+(\d+)', Path(f'/proc/{pid}/status').read_text())[1]) / 1024


@pytest.mark.skipif(sys.platform != 'linux', reason='peaks of processes are in /proc')
def test_an_image_of_many_pixels_in_few_bytes_is_refused_without_decoding_it(address, image, tmp_path):
    url, program = address
    path = bomb(tmp_path / 'bomb.png')
    assert path.stat().st_size < 2**20

    port = int(url.rpartition(':')[2])
    assert upload(port, image)[0] == 200
    before = peak_mib(program.pid)
    status, text = upload(port, path)
    assert peak_mib(program.pid) - before < 300  # decoded it has 2600
    assert status == 400
    assert 'bomb.png: 30000 x 30000 are 900.0 million pixels, more than the 16.8 million' in text


@pytest.fixture
def browser():
    if not (CHROMIUM and CHROMEDRIVER):
        pytest.skip('no chromium and chromedriver here: apt-get install chromium chromium-driver')
    webdriver = pytest.importorskip('selenium.webdriver')
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability('goog:loggingPrefs', {'performance': 'ALL'})
    # root needs the second, containers the third
    for option in ('--headless=new', '--no-sandbox', '--disable-dev-shm-usage', '--window-size=1200,1400'):
        options.add_argument(option)
    driver = webdriver.Chrome(options, webdriver.ChromeService(CHROMEDRIVER))
    yield driver
    driver.quit()


def test_in_a_browser_an_image_gets_an_overlay_and_feature_maps_and_mistakes_are_told(
    browser, address, image, tmp_path
):
    def part(name):
        return browser.find_element('id', name)

    def press_and_wait():
        part('predict').click()
        deadline = time.monotonic() + 120
        while not part('predict').is_enabled():
            assert time.monotonic() < deadline, part('status').text
            time.sleep(0.1)
        return part('status').text

    def choose(path):
        part('image').send_keys(str(path))

    def shown(name):
        """The pixels of a picture, if it can be seen and has been decoded."""
        element = part(name)
        natural = browser.execute_script(
            'return [arguments[0].naturalHeight, arguments[0].naturalWidth]', element
        )
        assert element.is_displayed() and element.size['width'] > 100
        picture = decode(element.get_attribute('src'))
        assert list(picture.shape[:2]) == natural
        return picture

    address, _ = address
    browser.get(address)
    assert 'no image' in press_and_wait() and not part('result').is_displayed()

    choose(image)
    assert 'classes' in press_and_wait()
    original = np.asarray(Image.open(image).convert('RGB'))
    overlay = shown('overlay')
    assert overlay.shape == original.shape and not np.array_equal(overlay, original)
    assert is_feature_maps(shown('maps'))
    assert part('task').text == 'Semantic segmentation' and part('records').text.endswith('%')

    browser.find_elements('tag name', 'option')[1].click()
    press_and_wait()
    assert not np.array_equal(shown('overlay'), overlay)
    assert not part('maps').is_displayed() and 'ConvNeXt' in part('note').text

    (tmp_path / 'broken.jpg').write_bytes(image.read_bytes()[:500])
    choose(tmp_path / 'broken.jpg')
    assert press_and_wait() == 'Error: broken.jpg: not an image, or a broken one'
    assert 'error' in part('status').get_attribute('class') and not part('result').is_displayed()

    events = [json.loads(entry['message'])['message'] for entry in browser.get_log('performance')]
    urls = [
        event['params']['request']['url']
        for event in events
        if event['method'] == 'Network.requestWillBeSent'
    ]
    assert f'{address}/predict' in urls
    assert [url for url in urls if not url.startswith((f'{address}/', 'data:', 'blob:'))] == []


def test_a_port_that_is_taken_is_an_error(address, models):
    port = address[0].rpartition(':')[2]
    printed = run(TOOL, '--models', *models[0], '--port', port, '--device', 'cpu', expect=1)
    assert f'Port {port} is in use' in printed and 'Traceback' not in printed
