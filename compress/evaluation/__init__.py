"""Quality of a model, and its agreement with its teacher."""
