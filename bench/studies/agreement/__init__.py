"""How often edgelm agrees with other implementations: graders, llama.cpp."""
