"""tools/web_demo.py: what its program answers, and the page in a real browser."""

import base64
import io
import json
import re
import runpy
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from revcol_mm.apis import init_model

from .subprocesses import REPO, run

Client = pytest.importorskip('werkzeug.test').Client
TOOL = REPO / 'tools/web_demo.py'
REVCOL = REPO / 'configs/upernet_revcol_nano_sample.py'
PLAIN = REPO / 'configs/baselines/upernet_convnext_sample.py'
CHROMIUM, CHROMEDRIVER = (shutil.which(name) for name in ('chromium', 'chromedriver'))
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
    assert answer['note'] == 'only RevCol has columns; the backbone of the model is ConvNeXt'


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


def test_it_offers_what_has_been_trained_below_a_folder(tool, models, tmp_path):
    for name, checkpoint in (('a', models[0][1]), ('b/c', models[1][1]), ('lost', tmp_path / 'gone.pth')):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / 'last_checkpoint').write_text(str(checkpoint))
        (tmp_path / name / 'config.py').touch()
    found = tool['trained_models'](tmp_path)
    assert found == [
        (str(tmp_path / name / 'config.py'), model[1]) for name, model in zip(('a', 'b/c'), models)
    ]


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--models', 'nothing.py', 'nothing.pth'], 'no config nothing.py'),
        (['--models', REVCOL, 'nothing.pth'], 'no checkpoint nothing.pth'),
        (['--work-dirs', REPO / 'docs'], 'nothing has been trained below'),
        (['--device', 'cuda:99'], "device 'cuda:99' is none of cpu"),
    ],
)
def test_a_mistake_is_an_error_in_one_line(arguments, message, tool, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['web_demo.py', *map(str, arguments)])
    with pytest.raises(SystemExit, match=f'^error: .*{message}'):
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
        yield address
    finally:
        program.terminate()
        program.wait(30)


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
    port = address.rpartition(':')[2]
    printed = run(TOOL, '--models', *models[0], '--port', port, '--device', 'cpu', expect=1)
    assert f'Port {port} is in use' in printed and 'Traceback' not in printed
