"""config.json: every field with strange values; what opens agrees with transformers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from edgelm.checkpoint.source import open_checkpoint, read_spec
from edgelm.devices.planner.plan import choices, plan
from edgelm.devices.profile import load_profile
from edgelm.errors import EdgeLMError
from edgelm.planning import PlanRequest
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.families.table import FAMILIES
from tests.checkpoints.models import TINY, tiny_config, tiny_model
from tests.fuzz.bytewise import mutate_bytes
from tests.fuzz.kind import Case, Kind, Opened
from tests.fuzz.outcome import Wrong
from tests.fuzz.strange import dump, mutate, strange

Tree = dict[str, Any]
_FIELDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
    *("num_key_value_heads", "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_theta"),
    *("rope_scaling", "rope_parameters", "tie_word_embeddings", "attention_bias", "mlp_bias"),
    *("hidden_act", "hidden_activation", "sliding_window", "use_sliding_window", "layer_types"),
    *("max_window_layers", "sliding_window_pattern", "no_rope_layers", "no_rope_layer_interval"),
    *("partial_rotary_factor", "query_pre_attn_scalar", "attn_logit_softcapping", "auto_map"),
    *("final_logit_softcapping", "attention_multiplier", "residual_multiplier", "logits_scaling"),
    *("embedding_multiplier", "quantization_config", "bos_token_id", "eos_token_id", "model_type"),
    *("rope_local_base_freq", "original_max_position_embeddings", "architectures", "torch_dtype"),
    *("pad_token_id", "dtype", "num_experts", "text_config", "activation_sparsity_pattern"),
    *("num_kv_shared_layers", "laurel_rank", "altup_num_inputs", "altup_active_idx"),
)
_ROPES: tuple[Any, ...] = (
    *(True, "x", [], {"rope_type": "x"}, {"type": "linear"}, {"rope_type": "linear", "factor": 0}),
    *({"rope_type": "yarn"}, {"rope_type": "llama3", "factor": "8"}, {"rope_type": ["yarn"]}),
    *({"type": "linear", "factor": 2.0}, {"rope_type": "longrope", "factor": 2}, {"factor": 4}),
    *({"rope_type": "dynamic", "factor": 2.0}, {"rope_theta": "x"}, {"rope_theta": 0}),
    *({"full_attention": 1}, {"full_attention": {"rope_theta": -1}}, {"rope_theta": 5e5}),
    {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 8},
)
_SIZES = (
    *("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads"),
    *("num_key_value_heads", "vocab_size", "max_position_embeddings"),
)


class Configs(Kind):
    """Sizes, windows and RoPE bases are those of transformers' configuration."""

    name = "config"

    def prepare(self, folder: Path) -> None:
        self.configs = [json.loads(tiny_config(name).to_json_string()) for name in TINY]
        self.model = folder / "model"
        tiny_model("llama", num_hidden_layers=2).save_pretrained(self.model)
        self.profile = load_profile("cpu")
        for config in self.configs:
            DecoderSpec.from_hf(config)
            AutoConfig.for_model(**PretrainedConfig._decode_special_floats(config))

    def make(self, rng: Random, folder: Path) -> Case:
        model = folder / "model"
        model.mkdir()
        config: Tree = json.loads(json.dumps(rng.choice(self.configs)))
        weights = rng.random() < 0.2
        if weights:
            shutil.copytree(self.model, model, dirs_exist_ok=True)
            config = json.loads((model / "config.json").read_bytes())
        path = model / "config.json"
        if rng.random() < 0.1:
            data, note = mutate_bytes(rng, json.dumps(config).encode())
        else:
            note = "; ".join(_change(rng, config) for _ in range(rng.choice((1, 1, 1, 2, 3))))
            data, odd = dump(rng, config)
            note = f"{note} {odd}".rstrip()
        path.write_bytes(data)
        return Case(f"{config.get('model_type')}: {note}", {"weights": weights})

    def check(self, folder: Path, case: Case, reference: Callable[[], None]) -> Opened:
        model = folder / "model"
        refused = None
        if case.facts["weights"]:
            try:
                open_checkpoint(model)
            except EdgeLMError as error:
                refused = error
        spec = read_spec(model)
        self._plan(spec)
        if refused:
            raise refused
        reference()
        theirs = AutoConfig.from_pretrained(model, trust_remote_code=False)
        _compare(spec, theirs)
        return "equal"

    def _plan(self, spec: DecoderSpec) -> None:
        result = plan(spec, self.profile, PlanRequest())
        result.table()
        for one in (*choices(spec, self.profile, PlanRequest()), result):
            figures = (one.total_bytes, one.decode_ms.value, one.prefill_ms.value, one.parameters)
            if not all(0 < figure < float("inf") for figure in figures):
                raise Wrong(f"a plan of {figures}")


def _change(rng: Random, config: Tree) -> str:
    if rng.random() < 0.3 and config:
        return mutate(rng, config)
    field = rng.choice(_FIELDS)
    ropes = field in ("rope_scaling", "rope_parameters") and rng.random() < 0.7
    config[field] = value = rng.choice(_ROPES) if ropes else strange(rng)
    return f"{field} is {repr(value)[:60]}"


def _compare(spec: DecoderSpec, theirs: Any) -> None:
    """Raise Wrong for what both read and read differently."""
    for name in _SIZES:
        ours, other = getattr(spec, name), getattr(theirs, name, None)
        if name == "intermediate_size":
            other = getattr(theirs, FAMILIES[spec.family].ffn_field, None)
            if hasattr(theirs, "block_auto_adjust_ff_dim"):
                other = _adjusted_size(theirs)
            if isinstance(other, list):  # one for each layer
                ours = [spec.mlp_size(layer) for layer in spec.layers]
            experts = FAMILIES[spec.family].experts
            if experts and ours == getattr(theirs, experts.size_field):
                continue  # no layer has a dense MLP: the default of the class is for none
        if other is not None and ours != other:
            raise Wrong(f"{name} is {ours}, transformers reads {other!r}")
    own = None if FAMILIES[spec.family].derived_heads else getattr(theirs, "head_dim", None)
    head_dim = own or theirs.hidden_size // theirs.num_attention_heads
    if spec.head_dim != head_dim:
        raise Wrong(f"head_dim is {spec.head_dim}, transformers reads {head_dim!r}")
    epsilon = getattr(theirs, FAMILIES[spec.family].eps_field)
    if spec.rms_norm_eps != epsilon:
        raise Wrong(f"rms_norm_eps is {spec.rms_norm_eps}, transformers reads {epsilon!r}")
    if spec.tie_word_embeddings != bool(theirs.tie_word_embeddings):
        raise Wrong(f"tie_word_embeddings: transformers reads {theirs.tie_word_embeddings!r}")
    _compare_windows(spec, theirs)
    _compare_rope(spec, theirs)


def _adjusted_size(theirs: Any) -> int:
    """The size that LFM2's class derives for its MLPs when it builds one."""
    import torch
    from transformers.models.lfm2.modeling_lfm2 import Lfm2MLP

    with torch.device("meta"):
        return int(Lfm2MLP(theirs).w1.out_features)


def _compare_windows(spec: DecoderSpec, theirs: Any) -> None:
    types = getattr(theirs, "layer_types", None)
    if not types:
        return
    ours = [layer.window for layer in spec.layers]
    wanted = [theirs.sliding_window if kind == "sliding_attention" else None for kind in types]
    if ours != wanted:
        raise Wrong(f"windows are {ours}, transformers reads {wanted}")


def _compare_rope(spec: DecoderSpec, theirs: Any) -> None:
    parameters = getattr(theirs, "rope_parameters", None)
    if not isinstance(parameters, dict) or "rope_theta" not in parameters:
        return
    if parameters.get("alpha") or hasattr(theirs, "layer_rope_theta"):
        return  # Hunyuan stretches the base, Granite SWA has one for each layer
    for layer in spec.layers:
        if layer.rope and layer.rope.theta != parameters["rope_theta"]:
            base = parameters["rope_theta"]
            raise Wrong(f"the base of RoPE is {layer.rope.theta}, transformers reads {base!r}")
        kind = layer.rope.scaling.get("rope_type", "default") if layer.rope else "default"
        if layer.rope and kind != parameters.get("rope_type", "default"):
            wanted = parameters.get("rope_type")
            raise Wrong(f"RoPE is scaled by {kind!r}, transformers reads {wanted!r}")
