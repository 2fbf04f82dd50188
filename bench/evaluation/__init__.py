"""Evaluation tasks on the engine that ships: a bundle compared with its source model."""
