"""Is the memory one that can be built? Size against stacks, pins against the generation, bandwidth against both."""

from __future__ import annotations

from collections.abc import Iterator

from .facts import facts
from .finding import Finding, error, flag, off
from .schema import Profile

BANDWIDTH_TOLERANCE = 0.03
MEASURING_TOLERANCE = 0.02
LEAST_USABLE_SHARE = 0.9
BITS_PER_STACK = 1024


def usable_memory(profile: Profile) -> Iterator[Finding]:
    memory = profile.memory
    if memory.raw_gb is None or memory.usable_gib is None:
        return
    share = memory.usable_gib / memory.raw_gb
    if share >= 1:
        cause = f"{memory.usable_gib:g} GiB is all of the {memory.raw_gb:g} GB label; a driver always reports less"
        yield error("memory.usable_gib", cause, "write what the driver reports")
    elif share < LEAST_USABLE_SHARE:
        cause = f"{memory.usable_gib:g} GiB usable is only {share:.0%} of {memory.raw_gb:g} GB"
        yield flag("memory.raw_gb", cause, "check both (another model's label, or two devices in one?)")


def stacks_and_pins(profile: Profile) -> Iterator[Finding]:
    memory = profile.memory
    generation = facts().memory_generations.get(memory.generation or "")
    if generation is None:
        return
    name, per_pin, per_stack = memory.generation, generation.max_gbit_per_s_per_pin, generation.max_gb_per_stack
    if memory.raw_gb and memory.bus_bits and memory.raw_gb / (memory.bus_bits / BITS_PER_STACK) > per_stack:
        stacked = memory.raw_gb / (memory.bus_bits / BITS_PER_STACK)
        cause = f"{memory.raw_gb:g} GB is {stacked:.0f} GB a stack, {name} has at most {per_stack:g}"
        yield error("memory.raw_gb", cause, "give the memory of one device")
    if memory.gbit_per_s_per_pin and memory.gbit_per_s_per_pin > per_pin:
        cause = f"{memory.gbit_per_s_per_pin:g} Gbit/s a pin is more than the {per_pin:g} of {name}"
        yield error("memory.generation", cause, "name the generation that is fitted")


def memory_bandwidth(profile: Profile) -> Iterator[Finding]:
    memory, field = profile.memory, "memory.bandwidth_gb_per_s"
    spec, measured = memory.bandwidth_gb_per_s.spec, memory.bandwidth_gb_per_s.measured
    if spec and memory.bus_bits and memory.gbit_per_s_per_pin:
        product = memory.bus_bits * memory.gbit_per_s_per_pin / 8
        if off(spec, product) > BANDWIDTH_TOLERANCE:
            cause = f"{spec:g} GB/s is not bus × pin rate = {product:.0f} GB/s"
            yield error(f"{field}.spec", cause, f"write {product:.0f}, or correct bus_bits or gbit_per_s_per_pin")
    if spec and measured and measured > spec * (1 + MEASURING_TOLERANCE):
        cause = f"{measured:g} GB/s is above the specified {spec:g}"
        yield error(f"{field}.measured", cause, "measure past the caches")
