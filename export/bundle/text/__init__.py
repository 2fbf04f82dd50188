"""The text files of a bundle: tokenizer, chat template, special tokens, generation defaults."""
