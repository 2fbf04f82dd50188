"""A program that runs edgelm's files, locks and trust as on another system: `win32` or `darwin`.

`python -m tests.core.other_system SYSTEM FOLDER`. Modules and functions that Python does not have
there are absent; `msvcrt` is a stand-in over flock. It prints one line for each step that worked.
"""

import importlib
import os
import pkgutil
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

_ABSENT_MODULES = {
    "win32": ("fcntl", "termios", "tty", "pty", "pwd", "grp", "resource", "syslog", "readline"),
    "darwin": (),
}
_ABSENT_FUNCTIONS = {
    "win32": (
        *("sched_getaffinity", "sysconf", "getuid", "geteuid", "getgid", "fork", "killpg"),
        *("O_DIRECTORY", "pread", "pwrite", "fdatasync"),
    ),
    "darwin": ("sched_getaffinity", "fdatasync", "posix_fadvise", "memfd_create"),
}
# Packages that are loaded as they are on this system: their own code for others is not our matter.
_PACKAGES: tuple[str, ...] = (
    "asyncio",
    "ctypes",
    "filelock",
    "jinja2",
    "msgspec",
    "multiprocessing",
    "numpy",
)
_PACKAGES += ("onnxruntime", "platform", "platformdirs", "subprocess", "tempfile", "tokenizers")
_PACKAGES += ("http.client", "urllib.request", "urllib.parse", "uuid", "webbrowser", "zipfile")
# What runs bundles needs none of these.
_LEFT_OUT = ("torch", "transformers", "onnx", "onnx_ir", "gguf", "safetensors", "huggingface_hub")
_IMPORTED = ("files", "bundle", "spec", "quantize", "devices", "runtime")
# An optional package, or a program that starts when it is imported.
_OPTIONAL: tuple[str, ...] = (*_LEFT_OUT, "fastapi", "uvicorn", "starlette", "pydantic")
_OPTIONAL += ("cuda", "tensorrt", "tensorrt_rtx")


def pretend(system: str) -> None:
    """Take away what the system lacks, after other packages have chosen their implementation."""
    import fcntl

    for name in _PACKAGES:
        importlib.import_module(name)
    if system == "win32":
        sys.modules["msvcrt"] = _msvcrt()
    for name in (*_ABSENT_MODULES[system], *_LEFT_OUT):
        sys.modules[name] = None  # type: ignore[assignment]
    for name in _ABSENT_FUNCTIONS[system]:
        if hasattr(os, name):
            delattr(os, name)
    open_file, kill, sync_file = os.open, os.kill, os.fsync

    def open_as_windows(path: str, flags: int, *arguments: int, **named: int) -> int:
        writes = flags & (os.O_WRONLY | os.O_RDWR)
        if os.path.isdir(path) or (writes and _is_read_only(path)):
            raise PermissionError(13, "Permission denied", str(path))
        return open_file(path, flags, *arguments, **named)

    def fsync_as_windows(handle: int) -> None:
        if not fcntl.fcntl(handle, fcntl.F_GETFL) & (os.O_WRONLY | os.O_RDWR):
            raise OSError(9, "Bad file descriptor")
        sync_file(handle)

    def signal_or_end(process: int, number: int) -> None:
        if number == 0:
            raise AssertionError("os.kill(pid, 0) ends the process on Windows")
        kill(process, number)

    unlink = os.unlink

    def unlink_writable(path: str, **named: int) -> None:
        if _is_read_only(path):
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, **named)

    if system == "win32":
        os.open, os.kill = open_as_windows, signal_or_end  # type: ignore[assignment]
        os.fsync = fsync_as_windows  # type: ignore[assignment]
        os.unlink = unlink_writable  # type: ignore[assignment]
        # Removing a tree opens its folders on this system.
        shutil._use_fd_functions = False  # type: ignore[attr-defined]
    sys.platform = system


def _is_read_only(path: str) -> bool:
    return os.path.isfile(path) and not os.stat(path).st_mode & 0o200


def _msvcrt() -> ModuleType:
    import fcntl

    module = ModuleType("msvcrt")

    def locking(handle: int, mode: int, size: int) -> None:
        assert (mode, size) == (2, 1)
        assert os.lseek(handle, 0, os.SEEK_CUR) > 2**30  # others must be able to read the content
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(13, "Permission denied") from None

    module.locking = locking  # type: ignore[attr-defined]
    module.LK_NBLCK = 2  # type: ignore[attr-defined]
    return module


def import_everything() -> int:
    """Import every module of core, devices and runtime; returns how many."""
    count = 0
    for name in _IMPORTED:
        package = importlib.import_module(f"edgelm.{name}")
        for module in pkgutil.walk_packages(package.__path__, f"edgelm.{name}."):
            if module.name.endswith("__main__"):
                continue
            count += _import(module.name)
    return count


def _import(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError as error:
        if (error.name or "").split(".")[0] not in _OPTIONAL:
            raise
        return False
    return True


def check_files(folder: Path) -> None:
    """Staged folders, replaced files, and what a killed process left."""
    from edgelm.files.replacing import remove_abandoned_files, replace_file
    from edgelm.files.staging import staged_folder

    target = folder / "bundle"
    for content in (b"first\n", b"second\r\n\x1a"):
        with staged_folder(target, marker="m.json", listing=lambda _: {"m.json", "data"}) as new:
            (new / "m.json").write_bytes(b"{}\n")
            (new / "data").write_bytes(content)
            (new / "data").chmod(0o444)  # read-only files are synced too
        assert (target / "data").read_bytes() == content
    table = folder / "table"
    replace_file(table, b"one\n")
    replace_file(table, b"two\n")
    assert table.read_bytes() == b"two\n"
    assert {path.name for path in folder.iterdir()} == {"bundle", "table"}
    left = folder / ".table.partial-edgelm-0123456789abcdef"
    left.touch()
    os.utime(left, (0, 0))
    remove_abandoned_files(folder)
    assert not left.exists()


def check_abandoned_staging(folder: Path) -> None:
    """The staging folder of a killed process goes, the one of a running process stays."""
    from edgelm.files.staging import staged_folder

    code = (
        "import sys; from pathlib import Path; from tests.core import other_system as o; "
        "o.pretend(sys.argv[1]); from edgelm.files.staging import staged_folder\n"
        "with staged_folder(Path(sys.argv[2]) / 'out', marker='m', listing=lambda _: {'m'}) as new:"
        " print('in', flush=True); input()"
    )
    command = [sys.executable, "-c", code, sys.platform, str(folder)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "in\n"
    for expected in (1, 0):
        with staged_folder(folder / "out", marker="m", listing=lambda _: {"m"}) as new:
            (new / "m").touch()
        hidden = [path for path in folder.iterdir() if path.name.startswith(".out")]
        assert len(hidden) == expected, hidden
        other.kill()
        other.wait(60)


def check_locks(folder: Path) -> None:
    """Two threads never hold a folder's lock together; the second is told that it waits."""
    from edgelm.files.locks import exclusive_lock

    inside, waited, most = [0], [0], [0]

    def enter() -> None:
        def waits() -> None:
            waited[0] += 1

        with exclusive_lock(folder, waits) as alone:
            assert alone
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.1)
            inside[0] -= 1

    threads = [threading.Thread(target=enter) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (most[0], inside[0]) == (1, 0)
    assert waited[0] >= 1
    assert not [path for path in folder.iterdir() if "lock" in path.name]


def check_trust() -> None:
    """Engines are trusted in the user's folder of this system."""
    from edgelm.files.user_folders import state_folder
    from edgelm.runtime.engines.trust import is_trusted, trust

    digests = [character * 64 for character in "0123"]
    threads = [threading.Thread(target=trust, args=(digest,)) for digest in digests * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(map(is_trusted, digests))
    assert not is_trusted("f" * 64)
    lines = (state_folder() / "trusted-engines.txt").read_text().split()
    assert sorted(lines) == digests


def check_machine() -> None:
    """This machine is detected and examined, with whatever cannot be read listed."""
    from edgelm.devices.detection.detect import describe, detect
    from edgelm.devices.doctor import describe as describe_results
    from edgelm.devices.doctor import examine
    from edgelm.devices.profile import load_profile

    machine = detect()
    assert describe(machine)
    assert machine.memory_bytes > 0
    assert describe_results(examine(machine))
    assert load_profile("cpu").budget_bytes > 0


def main(system: str, folder: Path) -> None:
    """Run every step."""
    pretend(system)
    print("imported", import_everything() > 100)
    for name in ("files", "staging", "locks"):
        (folder / name).mkdir(parents=True)
    check_files(folder / "files")
    print("files")
    check_abandoned_staging(folder / "staging")
    print("staging")
    check_locks(folder / "locks")
    print("locks")
    check_trust()
    print("trust")
    check_machine()
    print("machine")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
