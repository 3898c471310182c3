"""From a checkpoint to weights in their final place: sites are traced on shapes first, then rows stream from the files.

A weight is allocated once, in the layout that the binding asked for, and filled in pieces of at most 4 MiB, so that the
peak of resident memory is the weights and a few MiB.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import prod

import torch

from ..ops.discovery import ops as all_ops
from ..ops.layouts import PAGES_PHSD, ROW_MAJOR
from ..ops.sample import Sampling
from ..ops.state import Attending, Pages, StateGroup
from ..ops.tracing import Recorder
from ..ops.types import DENSE, ONE_DEVICE, Format, Layout, Site, Weight, dtype_name
from .batch import Batch
from .checkpoint import Checkpoint
from .config import ModelConfig
from .errors import CheckpointCorrupt, CheckpointRefused
from .fields import shown
from .model import Model, Parameter
from .tensor_file import TensorEntry

Allocate = Callable[[tuple[int, ...], torch.dtype], torch.Tensor]

STAGING_BYTES = 4 << 20
# Primes that no model has as a size of its own: a site's rows are told by how many they are.
_TRACE_TOKENS, _TRACE_LOGITS, _TRACE_REQUESTS, _TRACE_PAGE_SIZE = 11, 3, 2, 16
_META = torch.device("meta")
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_HARMLESS = re.compile(r"lm_head\.weight|.*rotary_emb\.inv_freq")
"""Tensors that some checkpoints carry beside the parameters: a tied head's copy, and what the config says already."""


def trace(
    model_class: type[Model], config: ModelConfig, dtype: torch.dtype, quantization: Format = DENSE
) -> tuple[Site, ...]:
    """The sites of a model that runs in `dtype`, in the order of its pass, with the sampler's at the end."""
    config = replace(config, dtype=dtype)
    weights = empty_weights(model_class.parameters(config), {}, dtype, quantization, _zeros(_META))
    model = model_class(config, weights, torch.device("cpu"))
    groups = model_class.groups(config)
    state = {group.name: [_trace_pages(group)] * group.num_layers for group in groups}
    recorder = Recorder(all_ops(), _TRACE_LOGITS)
    logits = model.forward(_trace_batch(groups), None, state, recorder, ONE_DEVICE)
    recorder.sample(logits, _trace_sampling())
    return recorder.sites


def empty_weights(
    parameters: Sequence[Parameter],
    layouts: Mapping[str, Layout],
    dtype: torch.dtype,
    quantization: Format,
    allocate: Allocate,
) -> dict[str, Weight]:
    """Every parameter's weight by name, as `load_weights` lays it out, without its values."""
    return {
        each.name: _empty_weight(each, stored_as(each, quantization), _layout(each, layouts), dtype, allocate)
        for each in parameters
    }


def stored_as(parameter: Parameter, quantization: Format) -> Format:
    """The format of a parameter: the layers' products take the one asked for; tables, norms and biases stay dense."""
    return quantization if len(parameter.shape) == 2 and parameter.role.startswith("layers.") else DENSE


def _zeros(device: torch.device) -> Allocate:
    return lambda shape, dtype: torch.zeros(shape, dtype=dtype, device=device)


def _empty_weight(
    parameter: Parameter, stored: Format, layout: Layout, dtype: torch.dtype, allocate: Allocate
) -> Weight:
    """Zeros, because a layout's padding is zero."""
    kinds = stored.tensors(parameter.shape, dtype, layout)
    tensors = {name: allocate(shape, kind) for name, (shape, kind) in kinds.items()}
    return Weight(parameter.role, parameter.shape, dtype, layout, tensors, stored, shard=parameter.shard)


def _trace_pages(group: StateGroup) -> Pages:
    shapes = {plane: PAGES_PHSD.shape(plane, 2, _TRACE_PAGE_SIZE) for plane in group.planes}
    planes = {plane.name: torch.zeros(shape, dtype=plane.dtype) for plane, shape in shapes.items()}
    return Pages(group, planes, PAGES_PHSD, _TRACE_PAGE_SIZE)


def _trace_batch(groups: Sequence[StateGroup]) -> Batch:
    def integers(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    attending = Attending(
        integers(_TRACE_REQUESTS + 1, dtype=torch.int32), integers(_TRACE_REQUESTS, dtype=torch.int32),
        integers(_TRACE_REQUESTS, 1, dtype=torch.int32), _TRACE_TOKENS,
    )  # fmt: skip
    return Batch(
        integers(_TRACE_TOKENS),
        integers(1, _TRACE_TOKENS),
        {group.name: integers(_TRACE_TOKENS) for group in groups},
        {group.name: attending for group in groups},
        integers(_TRACE_LOGITS),
    )


def _trace_sampling() -> Sampling:
    numbers = torch.zeros(_TRACE_LOGITS, dtype=torch.float32)
    integers = torch.zeros(_TRACE_LOGITS, dtype=torch.int64)
    tokens = torch.zeros(_TRACE_LOGITS, 1, dtype=torch.int64)
    return Sampling(
        temperature=numbers, top_k=integers, top_p=numbers, min_p=numbers, repetition=numbers, presence=numbers,
        frequency=numbers, seeds=integers, positions=integers, tokens=tokens, prompt_lengths=integers, lengths=integers,
    )  # fmt: skip


def load_weights(
    checkpoint: Checkpoint,
    parameters: Sequence[Parameter],
    layouts: Mapping[str, Layout],
    dtype: torch.dtype,
    device: torch.device,
    *,
    allocate: Allocate | None = None,
    quantization: Format = DENSE,
    explicit_dtype: bool = False,
    progress: bool | Callable[[float], None] = True,
) -> dict[str, Weight]:
    """Every parameter's weight by name, in `dtype` on `device`, laid out as `layouts` says for its role.

    allocate(shape, dtype): where the tensors come from, zeroed; None: torch, one by one.
    quantization: the format in which the layers' products are kept.
    explicit_dtype: the user asked for `dtype`; without it, float16 files are not run as bfloat16 nor the other way.
    progress: a bar on standard error where that is a terminal; False shows none there either; a function is told the
    share that is done.
    Errors, before anything is allocated: CheckpointCorrupt (a tensor missing, misshapen or of no use here),
    CheckpointRefused (a dtype that must not be converted unasked, or is none of floating point).
    """
    check_tensors(checkpoint, parameters)
    sources = [checkpoint.tensors[source.name] for parameter in parameters for source in parameter.sources]
    for entry in sources:
        _check_dtype(entry, dtype, explicit_dtype)
    with _progress(sum(entry.num_bytes for entry in sources), progress) as advance:
        loader = _Loader(checkpoint, dtype, device, allocate or _zeros(device), advance)
        return {
            parameter.name: loader.load(parameter, stored_as(parameter, quantization), _layout(parameter, layouts))
            for parameter in parameters
        }


def check_tensors(checkpoint: Checkpoint, parameters: Sequence[Parameter]) -> None:
    """The checkpoint has the parameters' tensors in their shapes, and no others."""
    wanted = {source.name: source.shape for parameter in parameters for source in parameter.sources}
    missing = [name for name in wanted if name not in checkpoint.tensors]
    if missing:
        raise CheckpointCorrupt(f"{checkpoint.folder} lacks {_counted(missing)}, which its config.json asks for")
    for name, shape in wanted.items():
        found = checkpoint.tensors[name]
        if found.shape != shape:
            raise CheckpointCorrupt(
                f"{found.file}: tensor {name} is {list(found.shape)}, config.json asks for {list(shape)}: "
                "take both files from the same checkpoint"
            )
    unused = [name for name in checkpoint.tensors if name not in wanted and not _HARMLESS.fullmatch(name)]
    if unused:
        raise CheckpointCorrupt(f"{checkpoint.folder} has {_counted(unused)}, for which its config.json has no place")


def _counted(names: Sequence[str]) -> str:
    return f"tensor {shown(names[0])}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _check_dtype(entry: TensorEntry, dtype: torch.dtype, explicit: bool) -> None:
    found, wanted = dtype_name(entry.dtype), dtype_name(dtype)
    if entry.dtype not in _FLOATS:
        raise CheckpointRefused(
            f"{entry.file}: tensor {entry.name} is {found}, a quantized weight: take the checkpoint that it was made of"
        )
    if {entry.dtype, dtype} == {torch.float16, torch.bfloat16} and not explicit:
        raise CheckpointRefused(
            f"{entry.file}: tensor {entry.name} is {found}, and {wanted} cannot hold all its values: ask for "
            f"dtype={found}, or for dtype={wanted} by name"
        )


def _layout(parameter: Parameter, layouts: Mapping[str, Layout]) -> Layout:
    """Vectors lie as they are."""
    return layouts.get(parameter.role, ROW_MAJOR) if len(parameter.shape) == 2 else ROW_MAJOR


class _Loader:
    """Two pieces of memory through which rows pass: as they stand in the file, and in the run's dtype."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        allocate: Allocate,
        advance: Callable[[int], None],
    ) -> None:
        self._checkpoint, self._dtype, self._device, self._advance = checkpoint, dtype, device, advance
        self._allocate = allocate
        self._buffers: dict[str, torch.Tensor] = {}

    def load(self, parameter: Parameter, stored: Format, layout: Layout) -> Weight:
        weight = _empty_weight(parameter, stored, layout, self._dtype, self._allocate)
        in_place = stored is DENSE and layout is ROW_MAJOR and self._device.type == "cpu"
        for row0, num_rows in self._pieces(parameter, layout):
            if in_place:
                self._fill(parameter, row0, weight.values[row0 : row0 + num_rows])
            else:
                rows = self._buffer("run", num_rows, parameter.shape, self._dtype)
                self._fill(parameter, row0, rows)
                weight.format.write_rows(weight, row0, rows)
        return weight

    def _pieces(self, parameter: Parameter, layout: Layout) -> Iterator[tuple[int, int]]:
        """(first row, number of rows): pieces begin at a multiple of the layout's rows and fit the staging memory."""
        widest = max(self._dtype.itemsize, *(self._entry(source.name).dtype.itemsize for source in parameter.sources))
        units = STAGING_BYTES // (widest * prod(parameter.shape[1:]) * layout.row_multiple)
        step = max(units, 1) * layout.row_multiple
        for row0 in range(0, parameter.shape[0], step):
            yield row0, min(step, parameter.shape[0] - row0)

    def _fill(self, parameter: Parameter, row0: int, rows: torch.Tensor) -> None:
        """Rows `[row0, …)` of the parameter, from as many of its sources as they span."""
        start = 0
        for source in parameter.sources:
            low, high = max(row0, start), min(row0 + rows.shape[0], start + source.shape[0])
            if low < high:
                self._read(self._entry(source.name), low - start, rows[low - row0 : high - row0])
            start += source.shape[0]

    def _read(self, entry: TensorEntry, row0: int, rows: torch.Tensor) -> None:
        num_rows = rows.shape[0]
        if entry.dtype == rows.dtype:
            self._checkpoint.read(entry.name, row0, num_rows, rows)
        else:
            raw = self._buffer("file", num_rows, entry.shape, entry.dtype)
            self._checkpoint.read(entry.name, row0, num_rows, raw)
            rows.copy_(raw)
            if rows.dtype == torch.float16 and not bool(rows.isfinite().all()):
                raise CheckpointRefused(
                    f"{entry.file}: tensor {entry.name} has values beyond float16: ask for another dtype"
                )
        self._advance(num_rows * entry.num_bytes // entry.shape[0])

    def _buffer(self, name: str, num_rows: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        size = (num_rows, *shape[1:])
        num_bytes = prod(size) * dtype.itemsize
        if name not in self._buffers or self._buffers[name].numel() < num_bytes:
            self._buffers[name] = torch.empty(max(num_bytes, STAGING_BYTES), dtype=torch.uint8)
        return self._buffers[name][:num_bytes].view(dtype).view(size)

    def _entry(self, name: str) -> TensorEntry:
        return self._checkpoint.tensors[name]


@contextmanager
def _progress(num_bytes: int, wanted: bool | Callable[[float], None]) -> Iterator[Callable[[int], None]]:
    if callable(wanted):
        tell, num_done = wanted, 0

        def advance(done: int) -> None:
            nonlocal num_done
            num_done += done
            tell(num_done / num_bytes)

        yield advance
        return
    if not (wanted and sys.stderr.isatty()):
        yield lambda done: None
        return
    from rich.console import Console  # only a terminal needs it
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("weights"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("weights", total=num_bytes)
        yield lambda done: bar.advance(task, done)
