"""The one-line message and the exit code for an error."""

from pathlib import Path

from edgelm.errors import EdgeLMError, GateFailed
from edgelm.reasons import one_line

FAILED_GATE, BAD_INPUT, INTERNAL_ERROR = 1, 2, 3

# The extra that installs an optional package.
_EXTRAS = {
    "accelerate": "compress",
    "cuda": "gpu",
    "datasets": "compress",
    "gguf": "export",
    "huggingface_hub": "export",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxruntime": "cpu",
    "pyarrow": "compress",
    "pynvml": "nvml",
    "safetensors": "export",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "rtx",
    "torch": "export",
    "transformers": "export",
    "trl": "align",
}


def explain(error: BaseException) -> tuple[int, str]:
    """The exit code of a command that ends with an error, and its message in one line."""
    if isinstance(error, GateFailed):
        return FAILED_GATE, str(error)
    if isinstance(error, EdgeLMError):
        return BAD_INPUT, str(error)
    if isinstance(error, ModuleNotFoundError) and (extra := _extra(error)):
        return BAD_INPUT, f"this needs {error.name}: pip install 'edgelm[{extra}]'"
    if isinstance(error, MemoryError):
        return BAD_INPUT, "not enough memory; close other programs or use a smaller model"
    if isinstance(error, OSError):
        return BAD_INPUT, _system_error(error)
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return BAD_INPUT, "a path contains a NUL character; expected the name of a file or folder"
    return INTERNAL_ERROR, _internal_error(error)


def _extra(error: ModuleNotFoundError) -> str | None:
    """The extra that installs a missing package; it depends on the command."""
    package = (error.name or "").partition(".")[0]
    extra = _EXTRAS.get(package)
    folders = {part for name in _files(error) for part in Path(name).parts}
    if extra and "bench" in folders:
        return "bench"
    if extra == "export" and "compress" in folders and package not in ("onnx", "onnx_ir"):
        return "compress"
    return extra


def _files(error: BaseException) -> list[str]:
    """The source files of an error's traceback, outermost first."""
    files, trace = [], error.__traceback__
    while trace is not None:
        files.append(trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next
    return files


def _system_error(error: OSError) -> str:
    # With two files, as in a copy, the second one is written.
    path = error.filename2 or error.filename
    reason = error.strerror or str(error) or type(error).__name__
    if isinstance(path, bytes):
        path = path.decode(errors="backslashreplace")
    text = reason if path is None or isinstance(path, int) else f"{path}: {reason}"
    return one_line(text)


def _internal_error(error: BaseException) -> str:
    trace, where = error.__traceback__, ""
    while trace is not None:
        where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    what = one_line(f"{type(error).__name__}: {error}")
    return (
        f"unexpected {what} ({where}); this is an error in edgelm, please report it with "
        "the command and the model; EDGELM_DEBUG=1 prints the traceback"
    )
