"""Answers as plain values, a row each: what `ambidex plan --json` gives out and its table shows. Units in the names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .answer import Answer, Degree
from .chain import SOURCE, Chain, ChainPoint
from .deployment import Deployment
from .links import collectives
from .point import Point
from .question import Question

Row = dict[str, Any]
_LEDGER_KEYS = {"weights": "weights", "KV cache": "kv_cache", "requests": "requests", "workspace": "workspace",
                "graphs": "graphs"}  # fmt: skip


def empty_row(profile: str, format_name: str, question: Question, reason: str | None) -> Row:
    """Every key, with nothing but the reason why it does not fit."""
    return {
        "profile": profile, "format": format_name, "kv_format": question.kv_format, "fits": False,
        "min_tensor_parallel": None, "num_devices": None, "max_context_tokens": None, "max_concurrency": None,
        "concurrency": None, "ttft_ms": None, "tpot_ms": None, "tokens_per_s": None, "eur_per_million_tokens": None,
        "kj_per_million_tokens": None, "limit": None, "efficiency_source": None, "is_bound": False, "load_s": None,
        "reason": reason, "ledger": None, "batches": [], "degrees": [],
    }  # fmt: skip


def answer_row(found: Answer) -> Row:
    row = empty_row(found.profile.name, found.format, found.question, found.reason)
    row["degrees"] = [_degree(each) for each in found.degrees]
    chosen = found.chosen
    if chosen is None or chosen.deployment is None or chosen.at is None:
        return row
    deployment = chosen.deployment
    return row | {
        "fits": True,
        # Of one degree that was asked for, nobody knows whether it is the smallest.
        "min_tensor_parallel": chosen.tensor_parallel if found.question.tensor_parallel is None else None,
        "num_devices": chosen.tensor_parallel,
        "max_context_tokens": found.max_context_tokens,
        "max_concurrency": max_concurrency(deployment, found.question.longest),
        "efficiency_source": deployment.efficiency.source,
        "load_s": load_bytes(deployment) / found.question.load_gb_per_s / 1e9,
        "ledger": ledger_values(deployment),
        "batches": [batch_values(deployment, each) for each in chosen.points],
    } | _headline(batch_values(deployment, chosen.at))  # fmt: skip


def chain_row(found: Chain, question: Question) -> Row:
    """Of a machine of SRAM: it holds everything by taking more devices."""
    held = found.num_devices * (found.profile.memory.usable_gib or 0.0) * 2**30
    row = empty_row(found.profile.name, found.precision.name, question, None)
    return row | {
        "fits": True,
        "num_devices": found.num_devices,
        "max_context_tokens": found.max_context_tokens,
        "max_concurrency": found.max_concurrency,
        "efficiency_source": SOURCE,
        "is_bound": True,
        "load_s": found.weight_bytes / question.load_gb_per_s / 1e9,
        "ledger": {
            "weights": found.weight_bytes, "kv_bytes_per_token": found.kv_token_bytes, "budget": int(held),
            "kv_cache": int(held) - found.weight_bytes,
        },
        "batches": [_chain_values(found, each) for each in found.points],
    } | _headline(_chain_values(found, found.at))  # fmt: skip


def _headline(point: Mapping[str, Any]) -> Row:
    return {"concurrency" if name == "batch" else name: value for name, value in point.items()}


def batch_values(deployment: Deployment, at: Point) -> Row:
    """One operating point; costs from the quoted price and from full power."""
    return {
        "batch": at.batch,
        "ttft_ms": 1e3 * at.ttft_s,
        "tpot_ms": 1e3 * at.tpot_s,
        "tokens_per_s": at.tokens_per_s,
        "eur_per_million_tokens": at.eur_per_million_tokens(deployment.eur_per_hour),
        "kj_per_million_tokens": at.kj_per_million_tokens(deployment.watts),
        "limit": at.limit,
    }


def _chain_values(found: Chain, at: ChainPoint) -> Row:
    return {
        "batch": at.batch,
        "ttft_ms": None if at.ttft_s is None else 1e3 * at.ttft_s,
        "tpot_ms": 1e3 * at.tpot_s,
        "tokens_per_s": at.tokens_per_s,
        "eur_per_million_tokens": None,
        "kj_per_million_tokens": found.watts / at.tokens_per_s * 1e3 if found.watts else None,
        "limit": at.limit,
    }


def _degree(found: Degree) -> Row:
    points = [batch_values(found.deployment, each) for each in found.points] if found.deployment else []
    return {
        "tensor_parallel": found.tensor_parallel,
        "fits": found.fits,
        "missing_bytes": max(found.missing_bytes, 0),
        "held_share": found.held_share,
        "kv_cache_tokens": found.deployment.kv_cache_tokens if found.deployment else 0,
        "batches": points,
    }


def max_concurrency(deployment: Deployment, longest: int) -> int:
    """Requests of that length whose keys have room at once, as far as there are slots."""
    pages = deployment.kv_cache_tokens // deployment.page_size
    return min(pages // -(-longest // deployment.page_size), deployment.max_num_seqs)


def load_bytes(deployment: Deployment) -> int:
    """What a load reads: the checkpoint's own bytes where they are known and kept as they are."""
    own = deployment.subject.checkpoint_bytes
    return own if own and deployment.precision.name == "bf16" else deployment.weight_bytes


def ledger_values(deployment: Deployment) -> Row:
    """Bytes of one device, by part; kv_bytes_per_token of one device, too."""
    ledger, part = deployment.ledger, deployment.part
    between = collectives(part, deployment.profile, deployment.efficiency)
    parts = {_LEDGER_KEYS[name]: size for name, size in ledger.predicted.items()}
    communication = between.buffer_bytes(deployment.token_budget, deployment.max_num_seqs) if between else 0
    return {
        **parts,
        "communication": communication,
        "unused": ledger.budget.num_bytes - ledger.total_bytes,
        "budget": ledger.budget.num_bytes + communication,
        "budget_source": ledger.budget.source,
        "kv_bytes_per_token": deployment.kv_bytes_per_token // part.tensor_parallel,
        "kv_cache_tokens": deployment.kv_cache_tokens,
        "page_size": deployment.page_size,
    }
