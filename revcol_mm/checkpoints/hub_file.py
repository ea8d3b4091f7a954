"""Files on the Hugging Face Hub, by address: hf://ORG/REPO/FILE, or hf://ORG/REPO@REVISION/FILE."""

import re
from pathlib import Path
from urllib.parse import unquote

HUB = 'hf://'
_ADDRESS = re.compile(r'hf://(?P<repo_id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/@]+))?/(?P<filename>[^@]+)')


def hub_file(address: str) -> Path:
    """Return the path of a file in huggingface_hub's cache, fetched if it is not there or has changed.

    Environment variables are that package's: HF_HOME says where its cache is, HF_HUB_OFFLINE=1 that nothing
    is fetched, HF_TOKEN opens private repositories.

    Args:
        address: As above. A revision is a branch, a tag or a commit; '/' in its name is written %2F.

    Raises:
        FileNotFoundError: If there is no such file, it cannot be fetched, or huggingface_hub is missing.
    """
    parts = _ADDRESS.fullmatch(address)
    if parts is None:
        raise FileNotFoundError(
            f'{address} is no address like hf://ORG/REPO/FILE or hf://ORG/REPO@REVISION/FILE'
        )
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError as error:
        raise FileNotFoundError(
            f'cannot fetch {address} without huggingface_hub: pip install huggingface_hub'
        ) from error
    revision = parts['revision'] and unquote(parts['revision'])
    try:
        return Path(hf_hub_download(parts['repo_id'], parts['filename'], revision=revision))
    except Exception as error:  # of the package, of its HTTP client, or of the disk
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(f'cannot fetch {address}: {reason}') from error
