"""Which shape fits the device: candidates within its budget, ranked by lightweight distillation."""
