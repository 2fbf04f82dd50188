"""The configuration of a GGUF file, as a Hugging Face folder has it."""
