"""tools/web_demo.py: its answers, and the page in a browser."""

# ruff: noqa: F811  fixtures are imported

import base64
import io
import json
import re
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from .subprocesses import REPO, run
from .web_demo_fixtures import REVCOL, address, image, models, tool  # noqa: F401

Client = pytest.importorskip('werkzeug.test').Client
CHROMIUM, CHROMEDRIVER = (shutil.which(name) for name in ('chromium', 'chromedriver'))


@pytest.fixture(scope='module')
def client(tool, models):
    offered = [tool['Model'](*model) for model in models]
    offered.append(tool['Model'](str(REVCOL), str(REPO / 'README.md')))
    return Client(tool['WebDemo'](offered, 'cpu', ['localhost']))


def post(client, model='0', **form):
    return client.post('/predict', data=dict(form, model=model))


def decode(url):
    head, _, data = url.partition(',')
    assert head == 'data:image/png;base64'
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert('RGB'))


def is_feature_maps(picture):
    """Return whether a picture may be a figure of 4 x 4 maps."""
    height, width = picture.shape[:2]
    return width >= 700 and height >= 400 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 500


def test_answer_has_overlay_records_and_feature_maps(client, image):
    response = post(client, image=(image.open('rb'), image.name))
    answer = response.json
    original = np.asarray(Image.open(image).convert('RGB'))
    overlay = decode(answer['overlay'])
    assert overlay.shape == original.shape and not np.array_equal(overlay, original)
    assert answer['task'] == 'semantic segmentation'
    assert answer['size'] == [original.shape[1], original.shape[0]]
    assert sum(record['score'] for record in answer['records']) == pytest.approx(1)
    assert is_feature_maps(decode(answer['feature_maps']))


def test_network_without_columns_has_a_note_instead_of_feature_maps(client, image):
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
        ('2', b'', 'cannot read'),  # not a checkpoint
    ],
)
def test_bad_request_is_answered_with_the_reason(model, content, message, client):
    form = {} if content is None else {'image': (io.BytesIO(content), '<b>.jpg')}
    response = post(client, model, **form)
    assert response.status_code == 400 and message in response.json['error']


def test_only_the_page_and_predict_are_served(client):
    page = client.get('/')
    assert page.status_code == 200 and page.mimetype == 'text/html'
    assert page.text.count('<option') == 3 and 'upernet_convnext_sample' in page.text
    assert "default-src 'none'" in page.headers['Content-Security-Policy']
    assert not re.search(r'(?:src|href|url)\s*[=(]\s*["\']?(?:https?:)?//', page.text)
    assert client.get('/../web_demo.py').status_code == 404 and client.get('/predict').status_code == 405


@pytest.fixture
def work_dir(models, tmp_path):
    """A work dir of a trained model."""
    folder = tmp_path / 'work_dirs/a'
    folder.mkdir(parents=True)
    config, checkpoint = models[0]
    Config.fromfile(config, format_python_code=False).dump(folder / 'config.py')
    shutil.copy(checkpoint, folder / 'iter_3.pth')
    (folder / 'last_checkpoint').write_text(str(folder / 'iter_3.pth'))
    return folder


@pytest.fixture
def client_of_work_dirs(tool, work_dir):
    found = tool['find_models'](SimpleNamespace(models=[], work_dirs=work_dir.parent))
    return Client(tool['WebDemo'](found, 'cpu'))


def test_trained_model_below_a_folder_is_offered(client_of_work_dirs, image):
    assert client_of_work_dirs.get('/').text.count('<option') == 1
    answer = post(client_of_work_dirs, image=(image.open('rb'), image.name)).json
    assert is_feature_maps(decode(answer['feature_maps']))


def test_config_that_has_changed_since_it_was_offered_does_not_run(
    client_of_work_dirs, work_dir, image, trap
):
    (work_dir / 'config.py').write_text(f'a = {trap.code}\n')
    response = post(client_of_work_dirs, image=(image.open('rb'), image.name))
    assert response.status_code == 400 and 'is no literal' in response.json['error']
    assert not trap.has_run()


def test_skipped_work_dirs_are_printed(tool, work_dir, capsys):
    bad = work_dir.with_name('bad')
    bad.mkdir()
    (bad / 'last_checkpoint').write_text(str(bad / 'iter_3.pth'))
    assert len(tool['find_models'](SimpleNamespace(models=[], work_dirs=work_dir.parent))) == 1
    assert capsys.readouterr().err == f'skipped {bad}: no checkpoint {bad}/iter_3.pth\n'


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--models', 'nothing.py', 'nothing.pth'], 'no config nothing.py'),
        (['--models', REVCOL, 'nothing.pth'], 'no checkpoint nothing.pth'),
        (['--work-dirs', REPO / 'docs'], 'no trained model below'),
        (['--device', 'cuda:99'], "there is no device 'cuda:99'; available are cpu"),
        (['--port', '65536'], '--port must be from 0 to 65535, got 65536'),
    ],
)
def test_bad_options_are_errors_in_one_line(arguments, message, tool, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['web_demo.py', *map(str, arguments)])
    with pytest.raises(SystemExit, match=f'^error: .*{message}'):
        tool['main']()


@pytest.fixture
def browser():
    if not (CHROMIUM and CHROMEDRIVER):
        pytest.skip('no chromium and chromedriver here: apt-get install chromium chromium-driver')
    webdriver = pytest.importorskip('selenium.webdriver')
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability('goog:loggingPrefs', {'performance': 'ALL'})
    # --no-sandbox is for root, --disable-dev-shm-usage for containers.
    for option in ('--headless=new', '--no-sandbox', '--disable-dev-shm-usage', '--window-size=1200,1400'):
        options.add_argument(option)
    driver = webdriver.Chrome(options, webdriver.ChromeService(CHROMEDRIVER))
    yield driver
    driver.quit()


# Presses a button that the page disables until it has an answer.
PRESS = """
const [button, done] = arguments;
const observer = new MutationObserver(() => {
  if (button.disabled) return;
  observer.disconnect();
  done();
});
observer.observe(button, {attributes: true});
button.click();
"""


def test_page_in_a_browser(browser, address, image, tmp_path):
    def part(name):
        return browser.find_element('id', name)

    def press_and_wait():
        browser.execute_async_script(PRESS, part('predict'))
        return part('status').text

    def choose(path):
        part('image').send_keys(str(path))

    def shown(name):
        """Return the pixels of a picture that is visible and was decoded."""
        element = part(name)
        natural = browser.execute_script(
            'return [arguments[0].naturalHeight, arguments[0].naturalWidth]', element
        )
        assert element.is_displayed() and element.size['width'] > 100
        picture = decode(element.get_attribute('src'))
        assert list(picture.shape[:2]) == natural
        return picture

    address, _ = address
    browser.set_script_timeout(600)
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


@pytest.mark.slow
def test_port_in_use_is_an_error(address, models):
    port = address[0].rpartition(':')[2]
    printed = run('tools/web_demo.py', '--models', *models[0], '--port', port, '--device', 'cpu', expect=1)
    assert f'Port {port} is in use' in printed and 'Traceback' not in printed
