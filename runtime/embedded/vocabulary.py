"""The tokenizer of the embedded model, byte-level BPE of 4,096 tokens trained on Python, and the files about it."""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB_SIZE = 4096
BEGIN, END_OF_TEXT, SYSTEM, USER, ASSISTANT, END_OF_TURN = SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)
MAX_POSITIONS = 1024

# In this order: the indentation of a line, a dunder name, a word with at most one character before it, a digit,
# punctuation, line ends, a run of spaces that leaves one for the next word. No piece spans a line end, so that a prompt
# which stops there is segmented as the training text was.
PIECES = (
    r"^ +| ?__\p{L}+(?:_\p{L}+)*__|[^\s\p{L}\p{N}]?\p{L}+| \p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+|\n+| +(?= \S)| +|\s"
)

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('the roles are system, user and assistant, not ' + message['role']) }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, token_id(tokenizer, BEGIN))]
    )
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that must exist."""
    index = tokenizer.token_to_id(token)
    assert index is not None, token
    return index


def write_model_files(tokenizer: Tokenizer, folder: Path) -> None:
    """The tokenizer and the configuration that does not depend on the weights."""
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    ids = {token: token_id(tokenizer, token) for token in SPECIAL_TOKENS}
    names = {"bos_token": BEGIN, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
    configuration = {
        **names,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_POSITIONS,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    generation = {
        "bos_token_id": ids[BEGIN],
        "eos_token_id": [ids[END_OF_TEXT], ids[END_OF_TURN]],
        "pad_token_id": ids[END_OF_TEXT],
        "do_sample": True,
        "temperature": 0.9,
        "top_p": 0.95,
    }
    added = {"additional_special_tokens": list(SPECIAL_TOKENS[2:])}
    write_json(folder / "tokenizer_config.json", configuration)
    write_json(folder / "special_tokens_map.json", {**names, **added})
    write_json(folder / "generation_config.json", generation)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
