"""`WordPieces`: a tokenizer that is learned from the texts that the model is trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from tokenizers import Encoding, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from unbackdoor.errors import DataError
from unbackdoor.text import in_utf8

PAD, UNKNOWN, BEGIN, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
SPECIAL = (PAD, UNKNOWN, BEGIN, END)
"""The first pieces of every vocabulary."""

MAX_PIECES = 100_000
MAX_PIECE = 200


@dataclass(frozen=True)
class Texts:
    """Texts as numbers of pieces.

    Attributes:
        pieces: padded with 0.
        length: pieces of each text, the beginning and the end counted.
        cut: whether a text had more pieces than fit, so that its end is lost.
        unknown: share of each text's own pieces that stand for what the tokenizer does not know, 0 to 1.
        familiar: share of each text's words that are one known piece each, 0 to 1; 1 of a text without words. Rare
            words are several pieces, and so are nearly all of another language.
    """

    pieces: Int[Tensor, "n l"]
    length: Int[Tensor, "n"]
    cut: tuple[bool, ...]
    unknown: tuple[float, ...]
    familiar: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.length)

    def rows(self, rows: Int[Tensor, "b"]) -> Int[Tensor, "b l"]:
        """Return some texts, without the columns that are padding in all of them."""
        return self.pieces[rows, : int(self.length[rows].max())].long()

    def to(self, device: torch.device) -> Texts:
        """Return the same on another device."""
        return replace(self, pieces=self.pieces.to(device), length=self.length.to(device))


def knowledge(encodings: Sequence[Encoding], unknown: int | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return `Texts.unknown` and `Texts.familiar` of texts as a tokenizer encoded them.

    Args:
        encodings: whole.
        unknown: number of the piece that stands for what is not known; None: there is none.
    """
    shares = []
    for one in encodings:
        # Pieces that the tokenizer adds belong to no word.
        own = [(word, piece) for word, piece in zip(one.word_ids, one.ids) if word is not None]
        pieces = Counter(word for word, _ in own)
        strange = {word for word, piece in own if piece == unknown}
        whole = sum(count == 1 and word not in strange for word, count in pieces.items())
        missing = sum(piece == unknown for _, piece in own)
        shares.append((missing / max(1, len(own)), whole / len(pieces) if pieces else 1.0))
    return tuple(share for share, _ in shares), tuple(share for _, share in shares)


class WordPieces:
    """Texts to pieces of words, lower-case, the longest pieces first, as BERT's tokenizer makes them.

    Args:
        pieces: the vocabulary; a piece's number is its place.

    Raises:
        DataError: it does not begin with the special pieces, or holds something twice, or no text.
    """

    def __init__(self, pieces: Sequence[str]) -> None:
        texts = [piece for piece in pieces if isinstance(piece, str) and in_utf8(piece) == piece]
        right = len(texts) == len(pieces) and all(0 < len(piece) <= MAX_PIECE for piece in texts)
        if not right or not len(pieces) == len(set(pieces)) <= MAX_PIECES or tuple(pieces[:4]) != SPECIAL:
            raise DataError(
                f"a vocabulary of word pieces is a list of at most {MAX_PIECES:,} different short texts that begins"
                f" with {', '.join(SPECIAL)}; train the model again"
            )
        self.pieces = tuple(pieces)
        numbers = {piece: number for number, piece in enumerate(pieces)}
        self._tokenizer = _reading(models.WordPiece(numbers, unk_token=UNKNOWN, continuing_subword_prefix=""))
        self._tokenizer.post_processor = processors.BertProcessing((END, numbers[END]), (BEGIN, numbers[BEGIN]))

    def __len__(self) -> int:
        return len(self.pieces)

    def encode(self, texts: Sequence[str], most: int) -> Texts:
        """Return texts as pieces.

        Args:
            texts: of any length.
            most: pieces that are kept of a text, the beginning and the end among them.
        """
        plain = [text.encode("utf-8", "replace").decode() for text in texts]
        encodings = self._tokenizer.encode_batch(plain)
        found = [encoding.ids for encoding in encodings]
        end = self.pieces.index(END)
        kept = [ids if len(ids) <= most else [*ids[: most - 1], end] for ids in found]
        pieces = torch.zeros(len(texts), most, dtype=torch.int32)
        for row, ids in enumerate(kept):
            pieces[row, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
        length = torch.tensor([len(ids) for ids in kept], dtype=torch.int32)
        cut = tuple(len(ids) > most for ids in found)
        return Texts(pieces, length, cut, *knowledge(encodings, self.pieces.index(UNKNOWN)))

    def to_json(self) -> list[str]:
        """Return the vocabulary as JSON values."""
        return list(self.pieces)

    @classmethod
    def learned(cls, texts: Iterable[str], most: int) -> WordPieces:
        """Return a tokenizer whose pieces are frequent in the texts.

        Args:
            texts: that a model is trained on.
            most: pieces of the vocabulary.
        """
        tokenizer = _reading(models.BPE())
        # Not the trainer of word pieces, which breaks ties by chance.
        trainer = trainers.BpeTrainer(vocab_size=most, special_tokens=list(SPECIAL), show_progress=False)
        tokenizer.train_from_iterator(texts, trainer)
        numbers = tokenizer.get_vocab()
        return cls(sorted(numbers, key=lambda piece: numbers[piece]))


def _reading(model: models.Model) -> Tokenizer:
    """Return a tokenizer that splits texts as BERT's does, and marks where a word begins."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    return tokenizer
