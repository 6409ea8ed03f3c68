"""Upload an export to the Hugging Face hub, with the user's own token and only when asked."""

import re
from pathlib import Path

from omma.core.errors import line, need

ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
CARDED = ("hf", "timm")  # formats that the hub shows, with their card


def check(repository: str, format: str) -> None:
    """Raise ValueError, before any work, for a wrong name, another format, a missing package or token."""
    if not ID.fullmatch(repository):
        raise ValueError(f"--push {repository}: name the repository as USER/NAME")
    if format not in CARDED:
        raise ValueError(f"--push needs a format with a model card ({' or '.join(CARDED)}), not {format}")
    _token()


def push(folder: Path, repository: str) -> str:
    """Upload the folder to the model repository, made private if it is new; its address.

    Raises ValueError if the hub refuses; the folder stays.
    """
    hub, token = need("huggingface_hub", "hf"), _token()
    try:
        api = hub.HfApi(token=token)
        api.create_repo(repo_id=repository, repo_type="model", private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Export from omma")
    except Exception as error:  # of the network, the hub or the client
        raise ValueError(f"{folder} is written, but was not pushed to {repository}: {line(error)}") from error
    return f"https://huggingface.co/{repository}"


def _token() -> str:
    token = need("huggingface_hub", "hf").get_token()
    if not token:
        raise ValueError("--push needs your own token: run `hf auth login`, or set HF_TOKEN")
    return token
