"""Whether this machine is one that the bundle was exported for.

The first check of a bundle: on another kind of machine it cannot run, whatever else is installed.
"""

from edgelm.bundle import Manifest
from edgelm.devices.checks.context import Context
from edgelm.devices.checks.verdict import Verdict, error, ok, unknown
from edgelm.devices.profile import load_profile
from edgelm.devices.tensorrt_versions import RTX
from edgelm.errors import BadInput

_CPU_ENGINE = "onnxruntime"


def bundle_target(context: Context) -> Verdict | None:
    """Whether the bundle's engine can run on this machine's processor or GPU."""
    manifest = context.manifest
    if manifest is None:
        return None
    if manifest.engine.name == _CPU_ENGINE:
        return ok("the bundle runs on the CPU of any machine, with ONNX Runtime")
    needed, here = _bundle(manifest), _machine(context)
    if not runs_here(context):
        return error(
            f"{needed}; {here}",
            why="its engine needs a GPU that this machine does not have",
            fix="run it on that device, or export the model for this one: edge-export MODEL "
            f"--target {context.machine.profile or 'cpu'}",
        )
    if manifest.engine.compute_capabilities and not context.compute_capabilities:
        return unknown(
            f"whether this machine fits: {needed}",
            why=f"the GPU's compute capability is not known ({context.unread('SM of')})",
            fix="compare with `nvidia-smi --query-gpu=compute_cap --format=csv`",
        )
    return ok(f"{needed}; {here}")


def runs_here(context: Context) -> bool:
    """Whether nothing that is known of this machine rules the bundle out."""
    manifest = context.manifest
    if manifest is None or manifest.engine.name == _CPU_ENGINE:
        return True
    if not context.has_gpu or (manifest.engine.name == RTX and context.machine.jetson):
        return False
    wanted, present = manifest.engine.compute_capabilities, context.compute_capabilities
    return not (wanted and present) or bool({*wanted} & {*present})


def _bundle(manifest: Manifest) -> str:
    try:
        target = load_profile(manifest.target).title
    except BadInput:  # a profile of the exporting machine
        target = manifest.target
    gpus = "".join(f", sm_{sm}" for sm in manifest.engine.compute_capabilities)
    return f"this bundle is for {target} ({manifest.engine.name}{gpus})"


def _machine(context: Context) -> str:
    machine = context.machine
    gpus = "".join(f", sm_{sm}" for sm in context.compute_capabilities).removeprefix(", ")
    known = f" ({gpus})" if gpus else ""
    if machine.jetson:
        return f"this machine is {machine.jetson.model}{known}"
    if machine.gpus:
        return f"this machine has {machine.gpus[0].name}{known}"
    if context.has_gpu:
        return "this machine has an NVIDIA GPU that cannot be read"
    return "this machine has no NVIDIA GPU"
