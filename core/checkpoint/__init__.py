"""Reading source models: safetensors folders, hub ids and GGUF files."""
