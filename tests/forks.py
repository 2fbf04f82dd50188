"""Processes of their own for tests, forked from one that has torch and transformers imported.

Importing them takes a process some eight seconds. Here one process does it for all tests; what it
starts begins where the imports end, and can be killed like any other. It has one thread only, since
a fork would lose the others.

    run_forked("tests.compress.run_training", "folder", "--die-at", "3") == -9
"""

import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tests.progress_lock import own_progress_lock

# What takes long and starts no thread, as onnxruntime does.
_IMPORTED = (
    "torch",
    "transformers",
    "accelerate",
    "edgelm.compress.pipeline",
    "transformers.models.llama.modeling_llama",  # with what every model imports, half of it all
)
_SECONDS = 1200.0  # that one run may take, on a machine that does other work


def run_forked(module: str, *arguments: str, processes: int = 1) -> int:
    """Run a module's `main` in processes of their own; the first exit code that is not 0, or 0.

    Several are ranks of one `torch.distributed` group, as torchrun starts them: when one of them
    fails, the others are killed.
    """
    return _ask(module, *arguments, processes=processes)


def run_forked_command(
    module: str, *arguments: str, folder: Path
) -> subprocess.CompletedProcess[str]:
    """Run a command's `main` in a process of its own, in a folder; its exit code and what it says.

    What it prints is written to files of that folder meanwhile.
    """
    logs = {name: folder / f"{name}.log" for name in ("stdout", "stderr")}
    code = _ask(module, *arguments, folder=str(folder), logs=[str(log) for log in logs.values()])
    said = [log.read_text() for log in logs.values()]
    for log in logs.values():
        log.unlink()
    return subprocess.CompletedProcess([module, *arguments], code, *said)


def _ask(module: str, *arguments: str, **options: Any) -> int:
    server = _server()
    assert server.stdin
    assert server.stdout
    server.stdin.write(json.dumps([module, arguments, options]) + "\n")
    server.stdin.flush()
    reply = server.stdout.readline()
    assert reply, "the process that forks has ended"
    return int(reply)


@cache
def _server() -> subprocess.Popen[str]:
    """Ends with this process, as its standard input does."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.forks"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def main() -> None:
    """Serve requests, a line each, until there are no more."""
    gc.disable()
    for name in _IMPORTED:
        importlib.import_module(name)
    own_progress_lock()
    gc.freeze()  # children share it
    gc.enable()
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    while line := sys.stdin.readline():
        module, arguments, options = json.loads(line)
        code = _run_group(module, arguments, **options)
        replies.write(f"{code}\n")


def _run_group(
    module: str,
    arguments: list[str],
    *,
    processes: int = 1,
    folder: str = ".",
    logs: Sequence[str] = (),
) -> int:
    port = _free_port()
    ranks = [_environment(rank, processes, port) for rank in range(processes)]
    running = {_fork(module, arguments, environment, folder, logs) for environment in ranks}
    deadline, first = time.monotonic() + _SECONDS, 0
    while running:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child in running:
            running.remove(child)
            first = first or os.waitstatus_to_exitcode(status)
        elif first or time.monotonic() > deadline:
            for each in running:
                os.kill(each, signal.SIGKILL)
            first = first or -signal.SIGALRM
        time.sleep(0.01)
    return first


def _environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun tells a rank; nothing to a process that is alone."""
    if processes == 1:
        return {}
    ranks = dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
    worlds = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes))
    return {**ranks, **worlds, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _fork(
    module: str, arguments: list[str], environment: dict[str, str], folder: str, logs: Sequence[str]
) -> int:
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"{threads} threads: a fork would lose all but one"
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for target, log in enumerate(logs, start=1):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), target)
        os.environ |= environment
        sys.argv = [module, *arguments]
        code = importlib.import_module(module).main() or 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
