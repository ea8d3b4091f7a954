"""Files on the Hugging Face Hub, addressed as hf://ORG/REPO/FILE or hf://ORG/REPO@REVISION/FILE."""

import re
from pathlib import Path
from urllib.parse import unquote

HUB = 'hf://'
_ADDRESS = re.compile(r'hf://(?P<repo_id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/@]+))?/(?P<filename>[^@]+)')


def hub_file(address: str) -> Path:
    """Return the path of a file in huggingface_hub's cache; download it if it is new or has changed.

    huggingface_hub's environment variables apply: HF_HOME sets the cache folder, HF_HUB_OFFLINE=1 forbids
    downloads, HF_TOKEN gives access to private repositories.

    Args:
        address: As above. REVISION is a branch, a tag or a commit; write '/' in its name as %2F.

    Raises:
        FileNotFoundError: If there is no such file, it cannot be downloaded, or huggingface_hub is missing.
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
    except Exception as error:  # huggingface_hub, its HTTP client and the disk have no common error class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(f'cannot fetch {address}: {reason}') from error
