"""Mixers that carry a state: gated delta rule, Mamba-2, short convolution."""
