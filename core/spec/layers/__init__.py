"""The parts of a layer: attention or another mixer, an MLP or experts, and their sizes."""
