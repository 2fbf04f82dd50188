"""The source model, streamed, and the texts that it is run on."""
