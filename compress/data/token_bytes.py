"""How many bytes a packed token takes."""

_SHORT = 1 << 16  # tokens whose ids fit in 16 bits


def token_bytes(vocab_size: int) -> int:
    """Bytes of a token id on disk: two up to 65,536 tokens, else four."""
    return 2 if vocab_size <= _SHORT else 4
