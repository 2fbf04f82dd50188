"""Between text and tokens: tokenizer, chat templates, stop strings."""
