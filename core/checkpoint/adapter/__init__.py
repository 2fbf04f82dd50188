"""LoRA adapters as PEFT saves them: reading them, and merging them into a checkpoint."""
