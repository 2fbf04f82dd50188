"""Names of special tokens in Hugging Face's tokenizers and chat templates."""

SPECIAL_TOKENS_FILE = "special_tokens_map.json"
"""The file of a bundle that maps each name to the token's text."""

SPECIAL_TOKEN_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
