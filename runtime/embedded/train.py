"""Train the embedded model on the arrays that `corpus.py` wrote.

    python -m ambidex.runtime.embedded.train --data out/embedded --compile

A training row is begin-of-text and then the text from a random line on. The training text is small (three million
tokens) and is passed many times, so dropout, strong weight decay on the matrices and randomly cut copies of the text
hold memorizing back; an exponential moving average of the weights is what is validated and saved. The run ends when
the validation loss has not improved for `--patience` looks, and the best average is kept.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .network import IGNORED, Llama, Shape


class Corpus:
    """The arrays of `corpus.py` on the device, and rows of them.

    A row is `begin` and the tokens from a start on; its targets are the same tokens one place earlier. `begin` is
    never a target: nothing in a text says that another one follows.
    """

    def __init__(self, folder: Path, names: list[str], row_tokens: int, device: torch.device) -> None:
        vocabulary: dict[str, int] = json.loads((folder / "model/tokenizer.json").read_text("utf-8"))["model"]["vocab"]
        self.begin = vocabulary["<|begin_of_text|>"]
        self.row_tokens = row_tokens
        arrays = [np.load(folder / f"{name}.npy").astype(np.int64) for name in names]
        self.lengths = [len(array) for array in arrays]
        self.tokens = torch.from_numpy(np.concatenate(arrays)).to(device)
        # A byte-level tokenizer writes a line end as U+010A.
        borders = [index for text, index in vocabulary.items() if not text.strip("\u010a")] + [self.begin]
        starts = torch.isin(self.tokens.roll(1), torch.tensor(borders, device=device))
        places = torch.where(starts, torch.arange(len(starts), device=device), len(starts) - row_tokens)
        self.next_line = places.flip(0).cummin(0).values.flip(0).clamp_(max=len(starts) - row_tokens)

    def rows(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and targets, each [rows, row_tokens]."""
        places = starts[:, None] + torch.arange(self.row_tokens, device=starts.device)
        inside = places < len(self.tokens)
        targets = self.tokens[places.clamp(max=len(self.tokens) - 1)]
        ids = torch.cat((torch.full_like(targets[:, :1], self.begin), targets[:, :-1]), dim=1)
        return ids, targets.masked_fill(~inside | (targets == self.begin), IGNORED)

    def shuffled_starts(self, shares: list[float], num_rows: int) -> Tensor:
        """Starts of the rows of one epoch: of each array its share, without overlap, each at the begin of a line."""
        device = self.tokens.device
        starts, origin = [], 0
        for length, share in zip(self.lengths, shares, strict=True):
            grid = torch.arange(origin, origin + length - 2 * self.row_tokens, self.row_tokens, device=device)
            grid = grid + torch.randint(self.row_tokens, (1,), device=device)
            starts.append(grid[torch.randperm(len(grid), device=device)[: round(share * num_rows)]])
            origin += length
        joined = self.next_line[torch.cat(starts)]
        return joined[torch.randperm(len(joined), device=device)]


@torch.no_grad()
def mean_loss(model: Llama, corpus: Corpus, rows_at_once: int = 32) -> float:
    """Nats a token over a whole array, in rows without overlap."""
    total, num_scored = 0.0, 0
    starts = torch.arange(0, len(corpus.tokens), corpus.row_tokens, device=corpus.tokens.device)
    for some in starts.split(rows_at_once):
        ids, targets = corpus.rows(some)
        total += model.loss(ids, targets, reduction="sum").item()
        num_scored += int((targets != IGNORED).sum())
    return total / num_scored


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are those of the shipped checkpoint."""

    epochs: int = 118
    batch_rows: int = 32
    learning_rate: float = 4e-3
    warmup_steps: int = 300
    final_share: float = 0.02
    weight_decay: float = 2.0
    dropout: float = 0.25
    cut_share: float = 0.4
    chat_share: float = 0.08
    average_decay: float = 0.999
    evaluate_every: int = 200
    patience: int = 12
    seed: int = 0

    def rate(self, step: int, num_steps: int) -> float:
        """Linear warm-up, then a cosine to `final_share` of the peak."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        phase = (step - self.warmup_steps) / max(1, num_steps - self.warmup_steps)
        return self.learning_rate * (self.final_share + (1 - self.final_share) * 0.5 * (1 + math.cos(math.pi * phase)))


def optimizer_for(model: Llama, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW that decays the matrices, but neither the norms nor the (tied) embedding."""
    named = dict(model.named_parameters())
    matrices = [value for name, value in named.items() if value.dim() == 2 and "embed" not in name]
    others = [value for name, value in named.items() if value.dim() != 2 or "embed" in name]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    fused = next(model.parameters()).device.type != "cpu"
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=fused)


class Training:
    """One run: the network, its moving average, the arrays and the optimizer."""

    def __init__(self, recipe: Recipe, shape: Shape, data: Path, device: torch.device, compiled: bool) -> None:
        torch.manual_seed(recipe.seed)
        torch.set_float32_matmul_precision("high")
        self.recipe, self.device = recipe, device
        cuts = sorted(path.stem for path in data.glob("train-cut-*.npy"))
        rows = shape.max_position_embeddings
        self.corpus = Corpus(data, ["train-clean", *cuts, "train-chat"], rows, device)
        self.shares = [1 - recipe.cut_share, *[recipe.cut_share / len(cuts)] * len(cuts), recipe.chat_share]
        self.validation = Corpus(data, ["validation"], rows, device)
        self.model = Llama(shape, recipe.dropout).to(device)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = optimizer_for(self.model, recipe)
        self.loss = torch.compile(self.model.loss) if compiled else self.model.loss
        self.rows_an_epoch = self.corpus.lengths[0] // rows
        self.steps_an_epoch = len(self.corpus.shuffled_starts(self.shares, self.rows_an_epoch)) // recipe.batch_rows
        self.num_steps = recipe.epochs * self.steps_an_epoch

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type != "cpu")

    def batches(self) -> Iterator[Tensor]:
        """Starts of the rows of each step, epoch after epoch."""
        while True:
            starts = self.corpus.shuffled_starts(self.shares, self.rows_an_epoch)
            yield from starts.split(self.recipe.batch_rows)[: self.steps_an_epoch]

    def step(self, rate: float, starts: Tensor, average_decay: float) -> Tensor:
        """One update of the network and of its average; the loss stays on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        ids, targets = self.corpus.rows(starts)
        with self.autocast():
            loss = self.loss(ids, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for average, current in zip(self.average.parameters(), self.model.parameters(), strict=True):
                average.lerp_(current, 1 - average_decay)
        return loss.detach()

    def look(self, step: int, losses: list[Tensor], seconds: float) -> dict[str, float]:
        """A row of the log: where the run stands after `step` updates, `losses` being those since the last look."""
        train_loss = torch.stack(losses).mean().item()
        num_tokens = len(losses) * self.recipe.batch_rows * self.corpus.row_tokens
        with self.autocast():
            validation_loss = mean_loss(self.average, self.validation)
        return {
            "step": step,
            "epoch": round(step / self.steps_an_epoch, 2),
            "train_loss": round(train_loss, 4),
            "val_loss": round(validation_loss, 4),
            "lr": float(f"{self.recipe.rate(step, self.num_steps):.3g}"),
            "tokens_per_s": round(num_tokens / seconds),
        }

    def run(self) -> Iterator[dict[str, float]]:
        """Train until the schedule ends; yields a row of the log at each look."""
        losses: list[Tensor] = []
        clock = time.perf_counter()
        for step, starts in zip(range(self.num_steps), self.batches(), strict=False):
            decay = min(self.recipe.average_decay, (1 + step) / (10 + step))
            losses.append(self.step(self.recipe.rate(step, self.num_steps), starts, decay))
            if (step + 1) % self.recipe.evaluate_every == 0 or step + 1 == self.num_steps:
                if self.device.type != "cpu":
                    torch.accelerator.synchronize()
                yield self.look(step + 1, losses, time.perf_counter() - clock)
                losses, clock = [], time.perf_counter()


def save(model: Llama, shape: Shape, out: Path) -> None:
    """The weights in bfloat16 and config.json; the head is the embedding and is not written twice."""
    weights = {f"model.{name}": value.bfloat16().contiguous().cpu() for name, value in model.state_dict().items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    generation = json.loads((out / "generation_config.json").read_text("utf-8"))
    sizes = {name: value for name, value in asdict(shape).items() if name != "rope_theta"}
    configuration = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        **sizes,
        "rope_theta": shape.rope_theta,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        **{name: generation[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
    }
    (out / "config.json").write_text(json.dumps(configuration, indent=2) + "\n", encoding="utf-8")


def plot(rows: list[dict[str, float]], path: Path) -> None:
    """The loss curve; matplotlib is wanted only here."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    for name, label in (("train_loss", "training (with dropout)"), ("val_loss", "validation (averaged weights)")):
        axes.plot([row["epoch"] for row in rows], [row[name] for row in rows], label=label, linewidth=1.2)
    top = min(5.0, 1.03 * max(row["val_loss"] for row in rows))
    axes.set(xlabel="epoch", ylabel="nats per token", ylim=(None, top))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=90)


def follow(training: Training, shape: Shape, out: Path) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Run the training to its end or to the end of patience; the log and the best average are in `out` at any time."""
    rows: list[dict[str, float]] = []
    best = 0
    with (out / "training_log.jsonl").open("w", encoding="utf-8") as log:
        for row in training.run():
            rows.append(row)
            print(json.dumps(row, separators=(",", ":")), file=log, flush=True)
            print(json.dumps(row), flush=True)
            if row["val_loss"] < rows[best]["val_loss"] or len(rows) == 1:
                best = len(rows) - 1
                save(training.average, shape, out)
            elif len(rows) - 1 - best >= training.recipe.patience:
                print(f"stopped: no better validation loss in {training.recipe.patience} looks")
                break
    return rows, rows[best]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the embedded model.")
    parser.add_argument("--data", type=Path, required=True, help="folder that corpus.py wrote")
    parser.add_argument("--out", type=Path, help="folder of the checkpoint (default: model/ in --data)")
    parser.add_argument("--device", default=str(torch.accelerator.current_accelerator(check_available=True) or "cpu"))
    parser.add_argument("--compile", action="store_true", help="torch.compile the loss")
    for field in fields(Recipe):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    arguments = parser.parse_args()

    shape = Shape()
    recipe = Recipe(**{field.name: getattr(arguments, field.name) for field in fields(Recipe)})
    out: Path = arguments.out or arguments.data / "model"
    training = Training(recipe, shape, arguments.data, torch.device(arguments.device), arguments.compile)
    print(json.dumps(asdict(recipe)), f"{training.num_steps} steps", flush=True)
    rows, best = follow(training, shape, out)
    print("best:", json.dumps(best))
    if find_spec("matplotlib"):
        plot(rows, out / "loss_curve.png")


if __name__ == "__main__":
    main()
