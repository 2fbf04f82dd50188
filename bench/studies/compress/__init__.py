"""What pruning and distillation give: arms of the same tokens, speed of training."""
