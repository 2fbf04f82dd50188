"""How files of each architecture store the tensors of a Hugging Face checkpoint."""
