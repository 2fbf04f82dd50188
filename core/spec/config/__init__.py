"""Reading a decoder's description from a Hugging Face configuration."""
