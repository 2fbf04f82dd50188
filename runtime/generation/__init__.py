"""One generation: its request and options, sampling, decoding, streams and the reply."""
