"""Files of a model on the Hugging Face hub, from the local cache where they are there."""

from pathlib import Path

from edgelm.errors import BadInput, MissingPackage
from edgelm.reasons import reason


def fetch(name: str, revision: str | None, files: list[str]) -> Path:
    """Download files that are not in the local cache; return the folder of the snapshot.

    Raises:
        MissingPackage: huggingface_hub is not installed.
        BadInput: there is no such model, or it cannot be downloaded.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ImportError:
        raise MissingPackage(
            f"{name} is not a local folder, and fetching it needs huggingface_hub: "
            "pip install 'edgelm[export]'"
        ) from None
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except HFValidationError as error:
        raise BadInput(
            f"{name!r} is neither a file or folder nor a hub id: {reason(error)}"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        at = f" at revision {revision}" if revision else ""
        raise BadInput(
            f"cannot fetch {name}{at} from the Hugging Face hub ({type(error).__name__}), and it "
            "is not in the local cache; check the name and the connection (gated models need "
            "`hf auth login`), or download it elsewhere and pass the folder"
        ) from None
