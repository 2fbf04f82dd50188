"""Tool calls in the text of an answer: formats of template families, their parsers and grammars."""
