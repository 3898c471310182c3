"""The recording binding: a model's `forward` run once on shapes, call by call, into a list of sites.

Nothing is computed: outputs are zeros on the first operand's device. Weights may be meta tensors. Activations better
are not: torch's first addition of meta tensors loads its compiler, 140 MB and seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch

from .contract import Op, Signature
from .types import Site, Weight, WeightSpec


class Recorder:
    """Stands where a binding's ops stand: `recorder.linear(x, weight)` notes a site and returns empty outputs.

    `num_logits` is the number of rows that yield logits in the trace: operands with that many rows belong to sites
    whose rows count logits, all others to tokens. Two calls of one (op, label) must agree in everything static.
    """

    def __init__(self, ops: Mapping[str, Op], num_logits: int) -> None:
        self._ops = ops
        self._num_logits = num_logits
        self._sites: dict[str, Site] = {}

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(self._sites.values())

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in self._ops:
            raise AttributeError(f"no op is called {name}: there are {', '.join(sorted(self._ops))}")
        op = self._ops[name]
        return lambda *args, **params: self._record(op, args, params)

    def _record(self, op: Op, args: tuple[Any, ...], params: dict[str, Any]) -> Any:
        signature = op.check(*args, **params)
        parts: tuple[Site, ...] = ()
        if op.parts is not None:
            inner = Recorder(self._ops, self._num_logits)
            op.parts(inner, *args, **params)
            parts = inner.sites
        rows: Literal["tokens", "logits"] = "logits" if args[0].shape[op.row_axis] == self._num_logits else "tokens"
        self._add(_site(op, op.label(*args, **params), signature, rows, parts))
        device = args[0].device
        outputs = tuple(torch.zeros(shape, dtype=dtype, device=device) for shape, dtype in signature.outputs)
        return outputs[0] if len(outputs) == 1 else outputs or None

    def _add(self, site: Site) -> None:
        num_logit_layers = int(site.rows == "logits")
        known = self._sites.get(site.name)
        if known is None:
            site = replace(site, num_logit_layers=num_logit_layers)
            self._sites[site.name] = site
            return
        if known.signature != site.signature:
            raise ValueError(f"two calls of {site.name} differ: give the weights or groups different names")
        rows = known.rows if known.rows == site.rows else "tokens"
        num_logit_layers += known.num_logit_layers
        self._sites[site.name] = replace(
            known, num_layers=known.num_layers + 1, num_logit_layers=num_logit_layers, rows=rows
        )


def _site(op: Op, label: str, signature: Signature, rows: Literal["tokens", "logits"], parts: tuple[Site, ...]) -> Site:
    weights = tuple(_weight_spec(weight) for weight in signature.weights if len(weight.shape) == 2)
    shards = {weight.shard for weight in signature.weights} - {None}
    return Site(
        op.name,
        label,
        signature.dims,
        signature.dtypes,
        rows,
        weights,
        signature.group,
        shards.pop() if shards else None,
        parts=parts,
    )


def _weight_spec(weight: Weight) -> WeightSpec:
    return WeightSpec(weight.role, weight.shape, weight.dtype, weight.format.name, weight.num_bytes)
