"""The texts of calibration and of the quality gate, cut into sequences of tokens.

Two small texts of our own come with the package, on different subjects: one to calibrate on, one
for the gate. `--calibration` and `--gate-text` take the user's own instead: JSONL with a `text`
field, or plain text, gzipped or not.
"""

import gzip
import hashlib
import json
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from edgelm.errors import BadCheckpoint, BadInput
from edgelm.files.hashing import file_sha256
from edgelm.files.json_files import NOT_TEXT, is_text
from edgelm.library_errors import library_errors

_FOLDER = Path(__file__).with_name("text")
CALIBRATION = _FOLDER / "calibration.jsonl"
GATE = _FOLDER / "gate.jsonl"
SEQUENCE = 512
SEQUENCES = 8
_FULL_PARAMETERS = 500_000_000  # up to this size all sequences are run
_MIN_SEQUENCES = 2
_MAX_BYTES = 20_000_000  # unpacked; tokenizing takes some ten times that in memory


@dataclass(frozen=True)
class Passage:
    """Tokens [B, T] of a text, and which text it was."""

    tokens: torch.Tensor
    name: str
    sha256: str

    @property
    def tokens_sha256(self) -> str:
        """Of the tokens in their order and shape."""
        shape = repr(tuple(self.tokens.shape)).encode()
        return hashlib.sha256(shape + self.tokens.numpy().tobytes()).hexdigest()

    def first(self, sequences: int) -> "Passage":
        """The first sequences of the text."""
        return replace(self, tokens=self.tokens[:sequences])


def affordable(sequences: int, parameters: int) -> int:
    """How many of a text's sequences to run: each costs a large model minutes on a CPU."""
    share = min(1.0, _FULL_PARAMETERS / parameters)
    return max(_MIN_SEQUENCES, round(sequences * share))


def read_passage(
    path: Path,
    tokenizer: Tokenizer,
    *,
    vocab_size: int,
    context: int,
    sequences: int = SEQUENCES,
) -> Passage:
    """Tokenize a text file and cut it into at most `sequences` of 512 tokens (or the context).

    Raises:
        BadInput: the file is missing, empty, of the wrong form or too short for one sequence.
        BadCheckpoint: the tokenizer fails on it.
    """
    text = "\n\n".join(read_documents(path))
    length = min(SEQUENCE, context)
    with library_errors(
        lambda why: BadCheckpoint(f"the model's tokenizer cannot encode {path.name}: {why}")
    ):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
    count = min(sequences, len(ids) // length)
    if count == 0:
        raise BadInput(
            f"{path} has {len(ids)} tokens, expected at least {length}; give a longer text"
        )
    if max(ids) >= vocab_size:
        raise BadInput(
            f"the tokenizer produces token {max(ids)}, the model's vocabulary has {vocab_size}: "
            "tokenizer and model do not belong together"
        )
    # Evenly spread over the text, so that a long file counts beyond its beginning.
    starts = [round(i * (len(ids) - length) / max(1, count - 1)) for i in range(count)]
    tokens = torch.tensor([ids[start : start + length] for start in starts])
    return Passage(tokens, path.name, file_sha256(path))


def _read(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise BadInput(f"{path} is not a regular file; expected a text file")
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        data = bytes(file.read(_MAX_BYTES + 1))
    if len(data) > _MAX_BYTES:
        raise BadInput(
            f"{path} holds more than {_MAX_BYTES / 1e6:.0f} MB of text, and a few thousand words "
            "are used; give a part of it"
        )
    # Some editors put a byte order mark before the text.
    return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def read_documents(path: Path) -> list[str]:
    """The texts of a file: of every line of JSONL, or one.

    Raises:
        BadInput: the file is missing, unreadable or of the wrong form.
    """
    try:
        content = _read(path)
    except FileNotFoundError:
        raise BadInput(f"no such text file: {path}") from None
    except ValueError as error:
        if not isinstance(error, UnicodeDecodeError):  # a NUL in the name
            raise BadInput(f"cannot read {str(path)!r}: {error}") from None
        raise BadInput(f"{path} is not UTF-8 text; expected JSONL or plain text") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise BadInput(f"{path} is not a complete gzip file; expected gzipped text") from None
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}; expected a text file") from None
    if not path.name.removesuffix(".gz").endswith(".jsonl"):
        return [content]
    documents = []
    # Not splitlines: JSON may hold U+2028 and its like unescaped.
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise BadInput(f'{path}, line {number}: expected a JSON object with a "text" field')
        if not is_text(text):
            raise BadInput(f"{path}, line {number}: {NOT_TEXT}")
        documents.append(text)
    return documents
