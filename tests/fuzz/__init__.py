"""Fuzzing that stays: seeded mutations of every file that edgelm reads from somebody else.

Every case is opened in a child process with limits on time and memory. What may come out is an
EdgeLMError, or an object that equals what an independent reader makes of the same file. All else
fails and can be replayed: `python -m tests.fuzz --kind gguf --seed 17 --case 123`.
"""
