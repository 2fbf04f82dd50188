"""The `config.json` of published dense models, and the parameters that their pages count.

The counts are exact: Hugging Face's number of elements, a tied head once, without what some
releases have beside the text model.
"""

from typing import Any, NamedTuple


class Published(NamedTuple):
    """What shapes a decoder, in the order of `models.toml`, and its parameters."""

    model_type: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    parameters: int
    window: int | None = None

    def config(self) -> dict[str, Any]:
        """As in `config.json`."""
        return {
            "model_type": self.model_type,
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "sliding_window": self.window,
            "max_position_embeddings": 32_768,
        }


# fmt: off
DENSE = {
    "qwen2.5-0.5b": Published("qwen2", 24, 896, 4864, 14, 2, 64, 151936, True, 494_032_768),
    "qwen2.5-1.5b": Published("qwen2", 28, 1536, 8960, 12, 2, 128, 151936, True, 1_543_714_304),
    "qwen2.5-3b": Published("qwen2", 36, 2048, 11008, 16, 2, 128, 151936, True, 3_085_938_688),
    "qwen2.5-7b": Published("qwen2", 28, 3584, 18944, 28, 4, 128, 152064, False, 7_615_616_512),
    "qwen2.5-14b": Published("qwen2", 48, 5120, 13824, 40, 8, 128, 152064, False, 14_770_033_664),
    "qwen2.5-32b": Published("qwen2", 64, 5120, 27648, 40, 8, 128, 152064, False, 32_763_876_352),
    "qwen3-0.6b": Published("qwen3", 28, 1024, 3072, 16, 8, 128, 151936, True, 596_049_920),
    "qwen3-1.7b": Published("qwen3", 28, 2048, 6144, 16, 8, 128, 151936, True, 1_720_574_976),
    "qwen3-4b": Published("qwen3", 36, 2560, 9728, 32, 8, 128, 151936, True, 4_022_468_096),
    "qwen3-8b": Published("qwen3", 36, 4096, 12288, 32, 8, 128, 151936, False, 8_190_735_360),
    "qwen3-14b": Published("qwen3", 40, 5120, 17408, 40, 8, 128, 151936, False, 14_768_307_200),
    "qwen3-32b": Published("qwen3", 64, 5120, 25600, 64, 8, 128, 151936, False, 32_762_123_264),
    "llama-3.2-1b": Published("llama", 16, 2048, 8192, 32, 8, 64, 128256, True, 1_235_814_400),
    "llama-3.2-3b": Published("llama", 28, 3072, 8192, 24, 8, 128, 128256, True, 3_212_749_824),
    "llama-3-8b": Published("llama", 32, 4096, 14336, 32, 8, 128, 128256, False, 8_030_261_248),
    "llama-3-70b": Published("llama", 80, 8192, 28672, 64, 8, 128, 128256, False, 70_553_706_496),
    "llama-2-7b": Published("llama", 32, 4096, 11008, 32, 32, 128, 32000, False, 6_738_415_616),
    "llama-2-13b": Published("llama", 40, 5120, 13824, 40, 40, 128, 32000, False, 13_015_864_320),
    "tinyllama-1.1b": Published("llama", 22, 2048, 5632, 32, 4, 64, 32000, False, 1_100_048_384),
    "gemma-2-2b":
        Published("gemma2", 26, 2304, 9216, 8, 4, 256, 256000, True, 2_614_341_888, 4096),
    "gemma-2-9b":
        Published("gemma2", 42, 3584, 14336, 16, 8, 256, 256000, True, 9_241_705_984, 4096),
    "gemma-2-27b":
        Published("gemma2", 46, 4608, 36864, 32, 16, 128, 256000, True, 27_227_128_320, 4096),
    "gemma-3-270m":
        Published("gemma3_text", 18, 640, 2048, 4, 1, 256, 262144, True, 268_098_176, 512),
    "gemma-3-1b":
        Published("gemma3_text", 26, 1152, 6912, 4, 1, 256, 262144, True, 999_885_952, 512),
    "gemma-3-4b":
        Published("gemma3_text", 34, 2560, 10240, 8, 4, 256, 262144, True, 3_880_099_328, 1024),
    "gemma-3-12b":
        Published("gemma3_text", 48, 3840, 15360, 16, 8, 256, 262144, True, 11_765_788_416, 1024),
    "gemma-3-27b":
        Published("gemma3_text", 62, 5376, 21504, 32, 16, 128, 262144, True, 27_009_002_240, 1024),
    "phi-3.5-mini": Published("phi3", 32, 3072, 8192, 32, 32, 96, 32064, False, 3_821_079_552),
    "phi-3-medium": Published(
        "phi3", 40, 5120, 17920, 40, 10, 128, 32064, False, 13_960_238_080
    ),
    "phi-4-mini": Published("phi3", 32, 3072, 8192, 24, 8, 128, 200064, True, 3_836_021_760),
    "phi-4": Published("phi3", 40, 5120, 17920, 40, 10, 128, 100352, False, 14_659_507_200),
    "mistral-nemo-12b":
        Published("mistral", 40, 5120, 14336, 32, 8, 128, 131072, False, 12_247_782_400),
    "ministral-8b":
        Published("mistral", 36, 4096, 12288, 32, 8, 128, 131072, False, 8_019_808_256),
    "mistral-small-24b":
        Published("mistral", 40, 5120, 32768, 32, 8, 128, 131072, False, 23_572_403_200),
    "mistral-7b": Published("mistral", 32, 4096, 14336, 32, 8, 128, 32768, False, 7_248_023_552),
    "smollm3-3b": Published("smollm3", 36, 2048, 11008, 16, 4, 128, 128256, True, 3_075_098_624),
    "smollm2-135m": Published("llama", 30, 576, 1536, 9, 3, 64, 49152, True, 134_515_008),
    "smollm2-360m": Published("llama", 32, 960, 2560, 15, 5, 64, 49152, True, 361_821_120),
    "smollm2-1.7b": Published("llama", 24, 2048, 8192, 32, 32, 64, 49152, True, 1_711_376_384),
}
# fmt: on
