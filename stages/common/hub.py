"""Models from the Hugging Face hub: the snapshot of one revision, safetensors only, left in the hub's cache.

    folder, commit = download_snapshot("meta-llama/Llama-3.1-8B-Instruct", "0e9e39f2...")

HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE mean what they mean everywhere else.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from stages.common.download import without_query
from stages.common.errors import UserError

_WANTED = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "*.txt"]
# Folders (such as original/) and consolidated files hold the same weights a second time.
_UNWANTED = ["*/*", "consolidated*", "*.bin", "*.pt", "*.pth", "*.gguf"]


def download_snapshot(name: str, revision: str, code_is_trusted: bool = False) -> tuple[Path, str]:
    """The snapshot's folder and commit id. UserError for a gated, missing or unreachable model."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from requests import RequestException

    reference = f"hf:{name}@{revision}"
    try:
        _check_disk(name, revision)
        folder = snapshot_download(
            name,
            revision=revision,
            allow_patterns=[*_WANTED, "*.py"] if code_is_trusted else _WANTED,
            ignore_patterns=_UNWANTED,
        )
    except GatedRepoError as error:
        expected = f"a model open to you: accept its licence on {constants.ENDPOINT}/{name} and set HF_TOKEN"
        raise UserError("models", reference, expected) from error
    except RevisionNotFoundError as error:
        raise UserError("models", reference, f"a revision that {name} has") from error
    except RepositoryNotFoundError as error:
        expected = f"a model on {constants.ENDPOINT}; if it is private, set HF_TOKEN"
        raise UserError("models", reference, expected) from error
    except LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} does not answer"
        raise UserError("models", reference, f"a model already in the hub's cache, since {why}") from error
    except HFValidationError as error:
        raise UserError("models", reference, "hf:OWNER/NAME@REVISION as the hub names its models") from error
    except HfHubHTTPError as error:  # its text is the server's, which may repeat the request's token
        status = getattr(error.response, "status_code", None)
        raise UserError("models", reference, f"a download that succeeds (HTTP {status})") from error
    except (RequestException, OSError) as error:
        line = f"{type(error).__name__}: {without_query(str(error))}"
        raise UserError("models", reference, f"a download that succeeds ({line})") from error
    return Path(folder), Path(folder).name


def _check_disk(name: str, revision: str) -> None:
    """Refuse before hours of download what the disk cannot hold; silent where the sizes cannot be had."""
    from huggingface_hub import constants
    from huggingface_hub.hf_api import HfApi
    from huggingface_hub.utils import filter_repo_objects
    from requests import RequestException

    cache = Path(constants.HF_HUB_CACHE)
    if (cache / f"models--{name.replace('/', '--')}").is_dir():
        return  # some of it is here, and how much is left is not known
    try:
        files = HfApi().model_info(name, revision=revision, files_metadata=True).siblings or []
    except (RequestException, OSError):
        return  # snapshot_download meets the same trouble and names it
    kept = filter_repo_objects(
        files, allow_patterns=_WANTED, ignore_patterns=_UNWANTED, key=lambda file: file.rfilename
    )
    needed = sum(file.size or 0 for file in kept)
    disk = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(disk).free
    if needed > free:
        raise UserError(f"disk of {disk}", f"{free / 1e9:.1f} GB free", f"{needed / 1e9:.1f} GB for {name}")
