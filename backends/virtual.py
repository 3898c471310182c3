"""The virtual backend: the same engine on a clock, for devices that are not here. It offers none to run a model on."""

from __future__ import annotations

from .virtual_clock import VirtualBackend

BACKEND = VirtualBackend()
