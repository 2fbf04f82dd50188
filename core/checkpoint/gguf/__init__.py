"""Reading GGUF files (format: ggml docs/gguf.md)."""
