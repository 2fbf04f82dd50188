"""Which shape a published model's name means, and which names mean none."""

import pytest

from edgelm.devices.published.models import known_models, model_named

_NAMES = {
    "qwen2.5-0.5b": ["Qwen2.5-0.5B Instruct", "qwen2.5:0.5b"],
    "qwen2.5-1.5b": ["Qwen2.5-Coder-1.5B", "DeepSeek-R1-Distill-Qwen-1.5B", "deepseek-r1:1.5b"],
    "qwen2.5-3b": ["Qwen2.5-3B-VL", "Qwen2.5-VL-3B-Instruct"],
    "qwen2.5-7b": ["Qwen2.5-VL-7B-Instruct", "qwen2.5:7b", "deepseek-r1:7b"],
    "qwen2.5-14b": ["Qwen2.5 14B Instruct", "DeepSeek R1 14b"],
    "qwen2.5-32b": ["QwQ-32B", "DeepSeek R1 32b"],
    "qwen3-0.6b": ["Qwen3-0.6B", "qwen3:0.6b"],
    "qwen3-1.7b": [
        "Qwen3-1.7B",
        "Qwen3-VL-2B-Instruct",
        "Cosmos Reasoning 2 2B",
        "Cosmos-Reason2-2B-NVFP4A16 (text)",
    ],
    "qwen3-4b": ["Qwen 3 4B", "Qwen3-4B-Instruct-2507", "Qwen3-4B-VL", "janhq_Jan-code-4b-Q4_K_M"],
    "qwen3-8b": ["Qwen3-VL-8B", "DeepSeek-R1-0528-Qwen3-8B", "allenai_SERA-8B-Q4_K_M"],
    "qwen3-14b": ["Qwen3-14B-AWQ", "NousResearch_NousCoder-14B-Q4_K_M"],
    "qwen3-32b": ["Qwen 3 32B", "Qwen3-VL-32B"],
    "qwen3-30b-a3b": ["Qwen 3 30B-A3B", "Qwen3-Coder-30B-A3B", "Qwen3-Omni-30B-A3B-Instruct"],
    "qwen3-coder-next": ["Qwen_Qwen3-Coder-Next-Q4_K_M", "Qwen3-Next-80B-A3B"],
    "qwen3.5-0.8b": ["Qwen3.5-0.8B-Base-Q4_0"],
    "qwen3.5-2b": ["Qwen3.5-2B-LLM"],
    "qwen3.5-4b": ["Qwen3.5-4B text-only GGUF"],
    "qwen3.5-9b": ["Jackrong_Qwen3.5-9B-Neo-Q4_K_M"],
    "qwen3.5-27b": ["Qwen3.6-27B", "ConicCat_Qwen3.5-27B-Writer-Q4_K_M"],
    "qwen3.5-35b-a3b": ["Qwen3.5-35B-A3B-LLM", "Gryphe_WorldSim-Opus-3.6-35B-A3B-Q4_K_M"],
    "llama-3.2-1b": ["Llama 3.2 1B Instruct", "llama3.2:1b"],
    "llama-3.2-3b": ["Llama 3.2:3b", "Hermes-3-Llama-3.2-3B"],
    "llama-3.1-minitron-4b-width": ["Llama-3.1-Minitron-4B-Width-Base"],
    "llama-3-8b": [
        "Llama 3 8B",
        "Meta Llama 3.1 8B Instruct",
        "llama3:8b",
        "DeepSeek-R1-Distill-Llama-8B",
        "Llama-3.1-Nemotron-Nano-8B",
    ],
    "llama-3-70b": ["Llama 3.3 70B", "Meta-Llama-3-70B", "DeepSeek-R1-Distill-Llama-70B"],
    "llama-2-7b": ["Llama-2-7b-chat"],
    "llama-2-13b": ["Llama-2-13b-chat"],
    "tinyllama-1.1b": ["TinyLlama-1.1B-Chat-v1.0"],
    "gemma-2-2b": ["Gemma-2-2B Instruct", "gemma2:2b"],
    "gemma-2-9b": ["Gemma 2 9B"],
    "gemma-2-27b": ["gemma-2-27b-it"],
    "gemma-3-270m": ["gemma-3-270m-it"],
    "gemma-3-1b": ["gemma3:1b"],
    "gemma-3-4b": ["gemma-3-4b-it-q4_0", "gemma3:4b"],
    "gemma-3-12b": ["Gemma 3 12B"],
    "gemma-3-27b": ["gemma-3-27b-it"],
    "phi-3-medium": ["Phi-3-medium-128k-instruct", "phi3:14b"],
    "phi-3.5-mini": ["Phi 3.5 3B", "Phi-3-mini-4k-instruct", "phi3:3.8b"],
    "phi-4-mini": ["Phi-4-mini-instruct"],
    "phi-4": ["Phi 4", "phi4:14b", "Phi-4-reasoning-plus"],
    "mistral-nemo-12b": ["Mistral-Nemo-Instruct-2407", "mistral-nemo:12b"],
    "ministral-8b": ["Ministral-8B-Instruct-2410"],
    "mistral-small-24b": ["Mistral Small 3.1 24B", "mistral-small:24b"],
    "mistral-7b": ["Mistral-7B Instruct", "mistral", "mistral:latest"],
    "smollm3-3b": ["SmolLM3-3B"],
    "smollm2-135m": ["SmolLM-135M", "SmolLM2-135M-Instruct"],
    "smollm2-360m": ["SmolLM2-360M"],
    "smollm2-1.7b": ["smollm2:1.7b"],
    "gpt-oss-20b": ["GPT-OSS-20B", "gpt-oss 20b"],
    "gpt-oss-120b": ["gpt-oss:120b"],
    "nemotron-3-nano-30b-a3b": [
        "Nemotron 3 30B-A3B",
        "Nemotron 3 Nano Omni",
        "nvidia/Nemotron-3-Nano-Omni-30B-A3B-Reasoning-NVFP4",
    ],
    "nemotron-3-nano-4b": ["Nemotron3 Nano 4B", "NVIDIA-Nemotron-3-Nano-4B"],
    "nemotron-nano-9b-v2": ["Nemotron Nano 9B V2"],
}
_UNKNOWN = [
    "Gemma 4 12B",
    "Gemma 4 E4B",
    "gemma-2b",
    "gemma-7b",
    "gemma-3n-E2B",
    "Llama-3.2-11B-Vision",
    "Llama-3.1-405B",
    "Llama-3.1-Minitron-4B-Depth",
    "Llama-3.3-Nemotron-Super-49B",
    "Llama-2-70b-chat",
    "CodeLlama-7b",
    "Mixtral-8x7B",
    "mistral-small:22b",
    "Mistral-Small-4-119B-2603-Q4_K_M",
    "Qwen2-7B",
    "Qwen2.5-72B",
    "Qwen3-235B-A22B",
    "Qwen3-Coder-480B-A35B",
    "Qwen3-Embedding-8B",
    "Qwen3.5-122B-A10B",
    "Nemotron 3 Super 120B-A12B",
    "deepseek-r1:671b",
    "DeepSeek-V4-Flash",
    "Cosmos3 Edge (Reasoner)",
    "phi-2",
    "LFM2.5-8B-A1B-UD-Q4_K_XL",
    "ibm-granite_granite-4.1-8b-Q4_K_M",
    "",
]
# Names that a pattern meant for others takes.
_MISTAKEN = [
    "dolphin3:8b",
    "Phi-4-multimodal-instruct",
    "Mistral-NeMo-Minitron-8B-Instruct",
]


@pytest.mark.parametrize(
    ("published", "name"),
    [(published, name) for name, several in _NAMES.items() for published in several],
    ids=str,
)
def test_published_name_is_known(published: str, name: str) -> None:
    found = model_named(published)
    assert found is not None
    assert found.name == name


def test_every_model_has_a_published_name_here() -> None:
    assert set(_NAMES) == {model.name for model in known_models()}


@pytest.mark.parametrize("name", [model.name for model in known_models()])
def test_no_earlier_pattern_takes_a_models_own_name(name: str) -> None:
    found = model_named(name)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("published", _UNKNOWN)
def test_another_model_is_taken_for_none(published: str) -> None:
    assert model_named(published) is None


@pytest.mark.parametrize("published", _MISTAKEN)
def test_another_size_or_name_is_taken_for_none(published: str) -> None:
    assert model_named(published) is None
