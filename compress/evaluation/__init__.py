"""How good a model is, and how close to its teacher."""
