"""Models that tasks can run on: a Hugging Face model, alone or on several processes."""
