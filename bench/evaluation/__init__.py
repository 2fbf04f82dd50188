"""Evaluation tasks on the engine that ships: a bundle beside the model that it was made from."""
