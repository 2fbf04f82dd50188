"""What a student is trained on: losses over the head and over hidden states, and their weights."""
