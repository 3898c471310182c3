"""What the compiler made of a kernel, read from its machine code: registers, spills, matrix instructions, widths.

NVIDIA: registers and memory of a thread's own by `cuobjdump --dump-resource-usage` (it is part of Triton's wheel),
instructions from PTX. AMD: everything from the assembly.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_BITS = re.compile(r"\.[bfusx]?f?(8|16|32|64|128)$")
_NARROW_AMD = {"ubyte": 1, "sbyte": 1, "byte": 1, "ushort": 2, "sshort": 2, "short": 2, "dword": 4}


@dataclass(frozen=True)
class MachineCode:
    """Of one compiled kernel.

    registers: of a thread (NVIDIA) or lane (AMD, accumulators included). spilled: registers that do not fit (AMD's
    count, NVIDIA's bytes of stack and local memory). scratch_bytes: memory of a thread's own. shared_bytes: on chip, of
    a block. matrix: the matrix instructions, as `wgmma f32.bf16.bf16` or `v_mfma f32 bf16`, without their shapes.
    loads, stores: of global memory, how many instructions by bytes of a lane; `bulk` counts tensor copies.
    """

    registers: int
    spilled: int
    scratch_bytes: int
    shared_bytes: int
    matrix: tuple[str, ...]
    loads: Mapping[int | str, int]
    stores: Mapping[int | str, int]

    @property
    def num_narrow(self) -> int:
        """Accesses of global memory of less than 16 bytes a lane."""
        return sum(
            count
            for found in (self.loads, self.stores)
            for width, count in found.items()
            if isinstance(width, int) and width < 16
        )


def of(code: Any) -> MachineCode:
    """The facts of Triton's compiled kernel."""
    shared = int(code.metadata.shared)
    return _of_ptx(code, shared) if "ptx" in code.asm else _of_assembly(code.asm["amdgcn"], shared)


def _of_ptx(code: Any, shared: int) -> MachineCode:
    registers, own = _resource_usage(next(path for name, path in code.metadata_group.items() if name.endswith("cubin")))
    text = code.asm["ptx"]
    loads: Counter[int | str] = Counter(map(_ptx_bytes, re.findall(r"\bld\.global([\w.:]*)", text)))
    loads.update(int(size, 16) for size in re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*?, 0x(\w+)", text))
    bulk_in = r"cp\.async\.bulk[\w.:]*shared::cluster\.global"
    bulk_out = r"cp\.async\.bulk[\w.:]*\.global\.shared::cta"
    stores: Counter[int | str] = Counter(map(_ptx_bytes, re.findall(r"\bst\.global([\w.:]*)", text)))
    loads, stores = _with_bulk(loads, bulk_in, text), _with_bulk(stores, bulk_out, text)
    return MachineCode(registers, own, own, shared, _ptx_matrix(text), loads, stores)


def _resource_usage(cubin: str) -> tuple[int, int]:
    """Registers, and bytes of stack and local memory, of a thread."""
    from triton import knobs

    command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", shown)}
    return found["REG"], found["STACK"] + found["LOCAL"]


def _with_bulk(found: Counter[int | str], pattern: str, text: str) -> Counter[int | str]:
    copies = len(re.findall(pattern, text))
    return found + Counter({"bulk": copies}) if copies else found


def _ptx_bytes(modifiers: str) -> int:
    """Of `.L1::evict_last.v4.b32`: 16."""
    vector, bits = re.search(r"\.v(\d)", modifiers), _BITS.search(modifiers)
    assert bits is not None, f"an access of unknown width: {modifiers}"
    return int(vector[1] if vector else 1) * int(bits[1]) // 8


def _ptx_matrix(text: str) -> tuple[str, ...]:
    wgmma = [f"wgmma {types}" for types in re.findall(r"wgmma\.mma_async\.sync\.aligned\.m\d+n\d+k\d+\.([\w.]+)", text)]
    tcgen05 = [
        f"tcgen05.mma {kind}" for kind in re.findall(r"tcgen05\.mma(?:\.sp)?\.cta_group::\d\.kind::([\w.:]+)", text)
    ]
    plain = re.findall(r"\bmma\.sync\.aligned\.m\d+n\d+k\d+\.row\.col\.(?:satfinite\.)?([\w.]+)", text)
    return tuple(sorted({*wgmma, *tcgen05, *(f"mma.sync {types}" for types in plain)}))


def _of_assembly(text: str, shared: int) -> MachineCode:
    def count(name: str) -> int:
        return int(re.findall(rf"^\s+\.{name}:\s+(\d+)", text, re.MULTILINE)[-1])

    matrix = re.findall(r"\bv_s?mfmac?_(\w+?)_\d+x\d+x\d+_?([\w]*)", text)
    accesses = re.findall(r"^\s+(?:global|buffer|flat)_(load|store)_(\w+)", text, re.MULTILINE)
    kinds: dict[str, Counter[int | str]] = {"load": Counter(), "store": Counter()}
    for kind, name in accesses:
        kinds[kind][_amd_bytes(name)] += 1
    registers, spilled, scratch = map(count, ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size"))
    found = tuple(sorted({f"v_mfma {result} {operand}".strip() for result, operand in matrix}))
    return MachineCode(registers, spilled, scratch, shared, found, kinds["load"], kinds["store"])


def _amd_bytes(name: str) -> int:
    """Of `dwordx4`: 16; `short_d16_hi`: 2."""
    words = re.match(r"(?:lds_)?dwordx(\d)", name)
    if words:
        return 4 * int(words[1])
    kind = re.sub(r"^lds_", "", name).split("_")[0]
    return _NARROW_AMD[kind]
