"""Tokenizers in the form of SentencePiece's, as Llama 2 and Mistral have them."""

from tokenizers import Tokenizer, decoders, normalizers


def add_sentencepiece_steps(tokenizer: Tokenizer) -> None:
    """Give a tokenizer a space before the text, spaces as "▁", and bytes for what is unknown."""
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
