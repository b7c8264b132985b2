"""Text to token ids and back: SentencePiece, byte-level BPE, chat templates; and whether two vocabularies agree."""

from cascades.tokenizers.base import Tokenizer
from cascades.tokenizers.detokenizer import Detokenizer
from cascades.tokenizers.load import load
from cascades.tokenizers.vocabulary import check_same_vocabulary

__all__ = ["Detokenizer", "Tokenizer", "check_same_vocabulary", "load"]
