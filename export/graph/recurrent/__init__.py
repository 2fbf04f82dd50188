"""Mixers that carry a state: gated delta rule, short convolution."""
