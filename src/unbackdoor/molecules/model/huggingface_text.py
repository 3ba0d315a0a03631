"""Text encoders of Hugging Face folders, such as SciBERT, whose weights the alignment starts from.

A folder or a model file from a stranger may ask transformers for more than a network. So of a configuration only the
options that shape a few well-known encoders are kept, weights are safetensors, and transformers builds the network from
those options alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from tokenizers import BertWordPieceTokenizer, Tokenizer
from torch import Tensor, nn

from unbackdoor.data.limits import reason_of
from unbackdoor.errors import CheckpointError, DataError, InputError
from unbackdoor.files import read_bytes
from unbackdoor.models.limits import MAX_FILE_BYTES, check_finite
from unbackdoor.models.safetensors_file import json_object, read_safetensors
from unbackdoor.models.sniff import CONVERT
from unbackdoor.molecules.model.wordpiece import BEGIN, END, UNKNOWN, Texts, knowledge
from unbackdoor.text import clean_text

TYPES = frozenset({"bert", "distilbert", "electra", "roberta"})

OPTIONS = frozenset(
    {
        "activation", "attention_dropout", "attention_probs_dropout_prob", "dim", "dropout", "embedding_size",
        "hidden_act", "hidden_dim", "hidden_dropout_prob", "hidden_size", "intermediate_size", "layer_norm_eps",
        "max_position_embeddings", "n_heads", "n_layers", "num_attention_heads", "num_hidden_layers", "pad_token_id",
        "sinusoidal_pos_embds", "type_vocab_size", "vocab_size",
    }
)  # fmt: skip
"""Those that shape the encoders; transformers has a default for the others."""

SIZES = frozenset({"max_position_embeddings", "n_layers", "num_hidden_layers", "pad_token_id", "vocab_size"})
"""Those that are compared here before transformers sees them."""

PARTS = {
    "normalizer": frozenset(
        {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Sequence", "Strip", "StripAccents"}
    ),
    "pre_tokenizer": frozenset(
        {"BertPreTokenizer", "ByteLevel", "Metaspace", "Punctuation", "Sequence", "Whitespace", "WhitespaceSplit"}
    ),
    "model": frozenset({"BPE", "WordPiece"}),
    "post_processor": frozenset({"BertProcessing", "ByteLevel", "RobertaProcessing", "Sequence", "TemplateProcessing"}),
}
"""Parts of a tokenizer that may be there, and their types; others can make a text as long as they please."""

MAX_SPECIAL = 8
"""Pieces that a tokenizer may put around a text."""
MAX_NUMBER = 300_000
MAX_LAYERS = 100
MAX_TOKENIZER = 3_000_000
"""Characters, so that it fits into the metadata of a file."""


class HuggingFaceWords:
    """The tokenizer and the configuration of an encoder.

    Args:
        config: options of the encoder, `model_type` among them; others than known ones are left out.
        tokenizer: content of a tokenizer.json.

    Raises:
        DataError: the encoder is of no known type, an option is out of range, or tokenizers cannot read the tokenizer.
    """

    def __init__(self, config: Mapping[str, Any], tokenizer: str) -> None:
        kind = config.get("model_type")
        if not isinstance(kind, str) or kind not in TYPES:
            raise DataError(
                f"a text encoder of type {clean_text(str(kind), 40)!r} is not known (known: {', '.join(sorted(TYPES))})"
            )
        if len(tokenizer) > MAX_TOKENIZER:
            raise DataError(f"the tokenizer has more than {MAX_TOKENIZER:,} characters; take one with fewer pieces")
        self.config = {"model_type": kind, **{name: value for name, value in config.items() if name in OPTIONS}}
        for name, value in self.config.items():
            short = isinstance(value, str) and len(value) <= 40
            if not (short or isinstance(value, bool | None) or _small(value)):
                raise DataError(f"the text encoder's option {name} is out of range; take another encoder")
        for name in SIZES & self.config.keys():
            if type(self.config[name]) is not int:
                raise DataError(f"the text encoder's option {name} must be a whole number; take another encoder")
        if max(self.config.get(name, 0) for name in ("num_hidden_layers", "n_layers")) > MAX_LAYERS:
            raise DataError(f"the text encoder has more than {MAX_LAYERS} layers; take a smaller one")
        self.pad = self.config.get("pad_token_id", 0)
        self.json = tokenizer
        _check_parts(tokenizer)
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer)
        # The library raises plain exceptions for whatever it cannot read.
        except Exception as error:
            raise DataError(f"tokenizers cannot read the tokenizer ({reason_of(error)}); save it again") from error
        self._tokenizer.no_padding()
        if max(self._tokenizer.get_vocab().values(), default=-1) >= self.config.get("vocab_size", 0):
            raise DataError("the tokenizer has more pieces than the text encoder knows; take those of one folder")
        if self._tokenizer.num_special_tokens_to_add(False) > MAX_SPECIAL:
            raise DataError(f"the tokenizer puts more than {MAX_SPECIAL} pieces around a text; take another encoder")

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def encode(self, texts: Sequence[str], most: int) -> Texts:
        """Return texts as pieces (see `WordPieces.encode`)."""
        plain = [text.encode("utf-8", "replace").decode() for text in texts]
        self._tokenizer.no_truncation()
        encodings = self._tokenizer.encode_batch(plain)
        cut = tuple(len(one.ids) > most for one in encodings)
        numbers = [self._tokenizer.token_to_id(name) for name in ("[UNK]", "<unk>")]
        unknown = next((number for number in numbers if number is not None), None)
        known = knowledge(encodings, unknown)
        self._tokenizer.enable_truncation(most)
        pieces = torch.full((len(texts), most), self.pad, dtype=torch.int32)
        lengths = []
        for row, one in enumerate(self._tokenizer.encode_batch(plain)):
            pieces[row, : len(one.ids)] = torch.tensor(one.ids, dtype=torch.int32)
            lengths.append(len(one.ids))
        return Texts(pieces, torch.tensor(lengths, dtype=torch.int32), cut, *known)

    def to_json(self) -> dict[str, Any]:
        """Return configuration and tokenizer as JSON values."""
        return {"config": self.config, "tokenizer": self.json}


class HuggingFaceText(nn.Module):
    """Texts to vectors: the first token's last vector, projected.

    Args:
        config: as `HuggingFaceWords` checked it.
        projection: of the texts' vectors.

    Raises:
        InputError: transformers is not installed, or cannot build an encoder of these options.
    """

    def __init__(self, config: Mapping[str, Any], projection: int) -> None:
        super().__init__()
        try:
            import transformers
        except ImportError as error:
            raise InputError(
                "a Hugging Face text encoder needs the package transformers: pip install 'unbackdoor[hf]'"
            ) from error
        options = {name: value for name, value in config.items() if name != "model_type"}
        try:
            made = transformers.CONFIG_MAPPING[config["model_type"]](**options)
            auto: Any = transformers.AutoModel
            self.body = auto.from_config(made, trust_remote_code=False)
            width = int(made.hidden_size)
        # Their code over a stranger's options: whatever it raises, the options are to blame.
        except Exception as error:
            raise InputError(f"no text encoder can be built of its configuration ({reason_of(error)})") from error
        self.pad = config.get("pad_token_id", 0)
        self.project = nn.Linear(width, projection)

    def forward(self, pieces: Int[Tensor, "b l"]) -> Float[Tensor, "b p"]:
        """Return a vector a text, not normalised."""
        hidden = self.body(input_ids=pieces, attention_mask=(pieces != self.pad).long()).last_hidden_state
        vectors: Tensor = self.project(hidden[:, 0]).float()
        return vectors


def read_text_encoder(folder: Path, most: int) -> tuple[HuggingFaceWords, dict[str, Tensor]]:
    """Return tokenizer and weights of a folder with config.json, tokenizer.json or vocab.txt, and model.safetensors.

    Args:
        folder: local; nothing is fetched.
        most: pieces of a text that are to be read.

    Raises:
        InputError: a file is missing, damaged or refused, or the encoder cannot read so many pieces.
    """
    where = clean_text(str(folder))
    try:
        config = json_object(read_bytes(folder / "config.json", 2**20), "config.json")
        words = HuggingFaceWords(config, _tokenizer(folder))
        state, _ = read_safetensors(_weights(folder))
        check_finite(state)
    except (OSError, ValueError, CheckpointError, DataError) as error:
        raise InputError(
            f"cannot read the text encoder {where} ({reason_of(error)}); name a folder with config.json, tokenizer.json"
            " or vocab.txt, and model.safetensors"
        ) from error
    # RoBERTa's first two places are not for pieces.
    places = words.config.get("max_position_embeddings", 512) - 2
    if places < most:
        raise InputError(f"the text encoder {where} reads {places} pieces, fewer than text_pieces ({most}); lower that")
    return words, {_renamed(name, str(config["model_type"])): value for name, value in state.items()}


def _tokenizer(folder: Path) -> str:
    """Return the tokenizer.json of a folder, or what it would be for the word pieces of its vocab.txt.

    Models of before there was that file, SciBERT among them, come with a list of BERT's pieces alone.
    """
    if (folder / "tokenizer.json").exists() or not (folder / "vocab.txt").exists():
        return read_bytes(folder / "tokenizer.json", 4 * MAX_TOKENIZER).decode()
    lines = read_bytes(folder / "vocab.txt", 4 * MAX_TOKENIZER).decode().removesuffix("\n").split("\n")
    pieces = {line.removesuffix("\r"): number for number, line in enumerate(lines)}
    if len(pieces) < len(lines) or not pieces.keys() >= {UNKNOWN, BEGIN, END}:
        raise DataError(f"vocab.txt must name {UNKNOWN}, {BEGIN} and {END}, and no piece twice")
    told = folder / "tokenizer_config.json"
    options = json_object(read_bytes(told, 2**20), told.name) if told.exists() else {}
    text: str = BertWordPieceTokenizer(pieces, lowercase=options.get("do_lower_case") is not False).to_str()
    return text


def _weights(folder: Path) -> bytes:
    """Return the model.safetensors of a folder."""
    path = folder / "model.safetensors"
    if not path.exists() and (folder / "pytorch_model.bin").exists():
        raise CheckpointError(f"its weights are in pytorch_model.bin alone, a pickle that is not opened; {CONVERT}")
    return read_bytes(path, MAX_FILE_BYTES)


def load_body(module: HuggingFaceText, state: Mapping[str, Tensor]) -> None:
    """Put weights of a folder into an encoder; heads that are not part of it are left out.

    Raises:
        InputError: the encoder needs weights that are not there, or of other shapes.
    """
    own = module.body.state_dict()
    absent = [name for name in own if name not in state and not name.startswith("pooler.")]
    other = [name for name in own if name in state and state[name].shape != own[name].shape]
    if absent or other:
        name = (absent + other)[0]
        raise InputError(f"the weights of the text encoder do not fit its config.json (first: {name}); save it again")
    module.body.load_state_dict({name: value for name, value in state.items() if name in own}, strict=False)


def _renamed(name: str, kind: str) -> str:
    name = name.removeprefix(f"{kind}.")
    # As the first programs called them, those of SciBERT among them.
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _check_parts(tokenizer: str) -> None:
    """Refuse a tokenizer with parts that are not known, which may make of a short text one that no memory holds."""
    try:
        content = json_object(tokenizer, "tokenizer")
    except CheckpointError as error:
        raise DataError(f"tokenizers cannot read the tokenizer ({error}); save it again") from error
    for name, types in PARTS.items():
        waiting = [content.get(name)]
        while waiting:
            part = waiting.pop()
            kind = part.get("type") if isinstance(part, dict) else None
            if part is not None and not (isinstance(kind, str) and kind in types):
                raise DataError(
                    f"the tokenizer's {name} is {clean_text(str(kind), 40)} (known: {', '.join(sorted(types))}); take"
                    " another encoder"
                )
            for inner in ("normalizers", "pretokenizers", "processors"):
                more = part.get(inner) if isinstance(part, dict) else None
                waiting += more if isinstance(more, list) else []


def _small(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value <= MAX_NUMBER
