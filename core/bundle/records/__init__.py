"""What a bundle records of its model: gate, behavior, self-test, evaluation, embedding settings."""
