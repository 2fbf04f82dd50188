"""Alignment on chat data: supervised fine-tuning and DPO, through TRL."""
