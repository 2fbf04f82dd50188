"""A grammar is compiled in a process of its own first, which may die of it.

Grammars come from the clients of a server, and llguidance's limits do not cover all that its
compiler does: a schema of 2 kB can take minutes, gigabytes, or overflow the stack, which would end
the server. A process takes some 50 ms to start; compiled grammars are cached.
"""

import functools
import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_PROGRAM = Path(__file__).with_name("trial_process.py")
_SECONDS = 1.5  # of computing
_MAX_SECONDS = 30.0  # on a clock, on a busy machine
_MEGABYTES = 200
# With 1,000,000 units of fuel, llguidance's own limit, a lexer can take 250 MB. FHIR, one of the
# largest schemas, needs 500,000.
LIMITS: Mapping[str, Any] = {"initial_lexer_fuel": 600_000, "verbose_errors": False}
_OUT_OF_TIME = int(getattr(signal, "SIGPROF", 27))
_DEATHS = 256  # exit codes from here on, and those below 0, are of processes that were ended
# One process at a time, however many requests bring a grammar.
_lock = threading.Lock()


def why_not(module: Any, grammar: str, special: Mapping[str, int], size: int) -> str | None:
    """Why a grammar must not be compiled; None if it can be, or if no process can be started.

    Args:
        module: llguidance.
        grammar: as `LLMatcher` takes it; it need not be valid.
        special: the vocabulary's special tokens by text.
        size: of the vocabulary.
    """
    request = {"grammar": grammar, "limits": dict(LIMITS), "special": dict(special), "size": size}
    with _lock:
        code = _run(str(Path(module.__file__).parents[1]), json.dumps(request).encode())
    if code is None:
        return f"compiling it takes more than {_MAX_SECONDS:g} seconds on this busy machine"
    if 0 <= code < _DEATHS:
        if code:  # an error of Python, or another program: no grammar causes it
            _warn()
        return None
    if code == -_OUT_OF_TIME:
        return f"compiling it takes more than {_SECONDS:g} seconds"
    return f"compiling it takes more than {_MEGABYTES} MB, or it is nested too deeply"


def _run(folder: str, request: bytes) -> int | None:
    """The exit code of the program; 1 if it cannot be started, None if it did not end."""
    if not sys.executable or getattr(sys, "frozen", False):  # embedded: it is not an interpreter
        return 1
    try:
        return subprocess.run(
            [sys.executable, "-I", "-S", str(_PROGRAM), folder, str(_SECONDS), str(_MEGABYTES)],
            input=request,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_MAX_SECONDS,
            start_new_session=True,  # Ctrl-C is for this process
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        return None
    except OSError as error:
        log.debug("%s", error)
        return 1


@functools.cache
def _warn() -> None:
    log.warning(
        "grammars cannot be tried in a process of their own on this system; one that takes very "
        "long or much memory to compile is not refused"
    )
