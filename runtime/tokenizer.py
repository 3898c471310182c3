"""Text to token ids and back, by `tokenizers` directly from a checkpoint's tokenizer.json. No torch, no remote code."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer as _Tokenizer
from tokenizers.decoders import DecodeStream

from .errors import CheckpointCorrupt, ModelNotFound, RequestError
from .fields import read_json
from .template import ChatTemplate


class TextStream:
    """Ids in, text out, piece by piece: holds bytes back until they make whole characters."""

    def __init__(self, tokenizer: _Tokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer, self._stream = tokenizer, DecodeStream(skip_special_tokens=skip_special_tokens)

    def push(self, token_id: int) -> str:
        """The text that became certain with this token; often "", when a character is not whole yet."""
        return self._stream.step(self._tokenizer, token_id) or ""


class Tokenizer:
    """A checkpoint's tokenizer and chat template. Folder: holds tokenizer.json; tokenizer_config.json if it has one."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelNotFound(
                f"{folder} has no tokenizer.json: save the fast tokenizer of the model beside its weights"
            )
        try:
            self._tokenizer = _Tokenizer.from_file(str(path))
        except BaseException as error:  # the library raises bare Exception, and panics of Rust are no Exception
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise CheckpointCorrupt(f"{path} is not a tokenizer: {error}; copy the file again") from None
        self._tokenizer.no_truncation()  # how long a prompt may be is the engine's to say, not the file's
        self._tokenizer.no_padding()
        config = folder / "tokenizer_config.json"
        self.template = ChatTemplate.read(folder, read_json(config, CheckpointCorrupt) if config.is_file() else {})

    @property
    def vocabulary_size(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. RequestError: lone surrogates, which no UTF-8 text has."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RequestError("the prompt holds lone surrogates, it must be text that UTF-8 can hold") from None
        # As a batch of one: the call for a single text holds the interpreter's lock, seconds for a long one.
        return self._tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)[0].ids

    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def token(self, token_id: int) -> str:
        """The text of one token by itself."""
        return self._tokenizer.decode([token_id], skip_special_tokens=False)

    def stream(self, *, skip_special_tokens: bool = True) -> TextStream:
        return TextStream(self._tokenizer, skip_special_tokens)
