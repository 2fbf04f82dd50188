"""The profile file that calibration writes."""

from datetime import date

from edgelm.devices.calibration.found import Found
from edgelm.devices.detection.machine import Machine

_PROFILE = """\
# Written by `edge-devices calibrate`.
schema_version = 1
name = "cpu"
title = "{title}"
form = "cpu"
architecture = "cpu"
power_mode = "default"
default_context = 8192
prefill_chunk = 128

[sources]
host = "measured {when} on {threads} threads of {cpu} with onnxruntime {onnxruntime}"
edgelm = "some memory stays free for the system"

[memory]
kind = "host"
reserved_bytes = {{ value = 300_000_000, source = "edgelm", status = "assumed" }}

[[power_modes]]
name = "default"
bandwidth_gb_s = {{ value = {read:.1f}, source = "host", status = "measured" }}
[power_modes.dense_tflops]
{dense}

[[engines]]
name = "onnxruntime"
version = "{onnxruntime}"
dialect = "ort"
precisions = ["fp32", "int8", "int4"]
kv = ["fp32", "int8"]
runtime_bytes = {{ value = 95_000_000, source = "host", status = "measured" }}
source = "host"

[engines.measured]
bandwidth = {{ {bandwidth} }}
cache_bandwidth = {{ {cache} }}
compute = {{ {compute} }}
attention = {attention:.3f}
layer_us = {layer_us:.1f}
step_us = {step_us:.0f}
prompt_layers = {prompt_layers:.2f}
band = {band:.2f}
source = "host"
"""
_MAX_BAND = 0.9
_MIN_BAND = 0.15  # other shapes differ more than the stacks do from each other


def profile_text(found: Found, machine: Machine, *, threads: int, when: date) -> str:
    """The profile of this machine as TOML."""
    dense = {
        name: f'{{ value = {rate:.4f}, source = "host", status = "measured" }}'
        for name, rate in found.matrices_tflops.items()
    }
    # Attention runs in fp32, so its share refers to that peak.
    attention = found.attention_tflops / found.matrices_tflops["fp32"]
    return _PROFILE.format(
        title=f"this machine: {_plain(machine.cpu.name)}, ONNX Runtime CPU",
        when=when.isoformat(),
        threads=threads,
        cpu=_plain(machine.cpu.name),
        onnxruntime=machine.packages.get("onnxruntime", ""),
        read=found.read_gb_s,
        dense="\n".join(f"{name} = {value}" for name, value in dense.items()),
        bandwidth=_table({k: v / found.read_gb_s for k, v in found.weights_gb_s.items()}),
        cache=_table({k: v / found.read_gb_s for k, v in found.cache_gb_s.items()}),
        compute=_table(dict.fromkeys(found.matrices_tflops, 1.0)),
        attention=attention,
        layer_us=found.layer_us,
        step_us=found.step_us,
        prompt_layers=found.prompt_layer_us / max(found.layer_us, 1e-3),
        band=min(_MAX_BAND, max(_MIN_BAND, found.worst)),
    )


def _table(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} = {share:.4f}" for name, share in shares.items())


def _plain(text: str) -> str:
    return text.replace("\\", "/").replace('"', "'")
