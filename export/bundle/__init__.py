"""What a bundle holds besides the graph: tokenizer, model card, lineage, engines."""
