"""What the tests of adapters ask."""

import numpy as np

PROMPT = tuple(np.random.default_rng(3).integers(4, 320, 40).tolist())
COUNT = 12
OPEN = {2: -np.inf, 3: -np.inf}  # no answer ends by itself
CHOICES = (None, "pirate", "poet")
