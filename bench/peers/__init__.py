"""The engines that a bundle is compared with, and their models."""
