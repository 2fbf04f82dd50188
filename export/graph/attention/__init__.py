"""Attention in each dialect: rotary tables, key-value cache, output gate."""
