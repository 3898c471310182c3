"""Judge the embedded model by another implementation than the one that trained it: Hugging Face `transformers`.

    python -m ambidex.runtime.embedded.evaluate --data out/embedded --model runtime/embedded

Prints the held-out perplexity of the test files, in float32 and in bfloat16, and samples. Rows as in training:
begin-of-text, then at most 1,023 tokens of context; every token of the files is scored once, begin-of-text never.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoTokenizer, LlamaForCausalLM

PROMPTS = ("def ", "class ", "import os\n\ndef read_file(path):\n")
QUESTIONS = ("Write a Python function: Return the largest of two numbers.", "What does `list.sort(key=None)` do?")
NEW_TOKENS = 160


@torch.no_grad()
def total_nats(model: LlamaForCausalLM, tokens: torch.Tensor, rows_at_once: int = 16) -> tuple[float, int]:
    """Nats over all tokens, and how many were scored."""
    begin, row_tokens = model.config.bos_token_id, model.config.max_position_embeddings
    total, num_scored = 0.0, 0
    for some in tokens.split(row_tokens * rows_at_once):
        pad = -len(some) % row_tokens
        targets = nn.functional.pad(some, (0, pad), value=begin).view(-1, row_tokens)
        ids = nn.functional.pad(targets[:, :-1], (1, 0), value=begin)
        logits = model(ids).logits.float().flatten(0, 1)
        total += nn.functional.cross_entropy(logits, targets.flatten(), ignore_index=begin, reduction="sum").item()
        num_scored += int((targets != begin).sum())
    return total, num_scored


def perplexities(model_folder: Path, data: Path, split: str, device: torch.device) -> dict[str, dict[str, float]]:
    facts = json.loads((model_folder / "corpus.json").read_text("utf-8"))
    tokens = torch.from_numpy(np.load(data / f"{split}.npy").astype(np.int64)).to(device)
    results: dict[str, dict[str, float]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = LlamaForCausalLM.from_pretrained(model_folder, dtype=dtype).to(device).eval()
        nats, num_scored = total_nats(model, tokens)
        results[f"{split} {dtype}".replace("torch.", "")] = {
            "nats_per_token": round(nats / num_scored, 4),
            "perplexity": round(math.exp(nats / num_scored), 3),
            "bits_per_byte": round(nats / math.log(2) / facts["splits"][split]["num_bytes"], 4),
            "num_tokens": num_scored,
        }
    return results


def samples(model_folder: Path, device: torch.device) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = LlamaForCausalLM.from_pretrained(model_folder, dtype=torch.float32).to(device).eval()
    asked = [[{"role": "user", "content": question}] for question in QUESTIONS]
    prompts = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    prompts += [tokenizer.apply_chat_template(turns, add_generation_prompt=True).input_ids for turns in asked]
    for ids in prompts:
        for name, options in (("greedy", {"do_sample": False}), ("sampled as generation_config.json says", {})):
            torch.manual_seed(0)
            given = torch.tensor([ids], device=device)
            out = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=NEW_TOKENS, **options)
            print(f"--- {name}\n{tokenizer.decode(out[0])}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Held-out perplexity and samples of the embedded model.")
    parser.add_argument("--data", type=Path, required=True, help="folder that corpus.py wrote")
    parser.add_argument("--model", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--device", default=str(torch.accelerator.current_accelerator(check_available=True) or "cpu"))
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    for split in ("validation", "test"):
        for name, figures in perplexities(arguments.model, arguments.data, split, device).items():
            print(name, json.dumps(figures))
    samples(arguments.model, device)


if __name__ == "__main__":
    main()
