"""What a user can get wrong, each with its cause, its cure and an exit code of the command line.

A message is one line. `RequestError` harms one request and nothing else; the others stop a model from loading.
"""

from __future__ import annotations


class AmbidexError(ValueError):
    """Base of the errors that are the user's to mend."""

    exit_code = 1


class ModelNotFound(AmbidexError):
    """The folder or hub id is not there, or lacks a file that every checkpoint has."""

    exit_code = 3


class CheckpointRefused(AmbidexError):
    """A format that is not read: pickled weights, or a storage format that nothing here knows."""

    exit_code = 4


class CheckpointCorrupt(AmbidexError):
    """A file that lies: truncated, overlapping or misshapen tensors."""

    exit_code = 5


class ConfigError(AmbidexError):
    """A config.json that cannot be served: unknown model_type, missing or senseless fields."""

    exit_code = 6


class OutOfMemory(AmbidexError):
    """What was asked for is larger than the device: says by how much, before anything is allocated."""

    exit_code = 7


class RequestError(AmbidexError):
    """A prompt or parameter outside its range."""

    exit_code = 8


class DeviceError(AmbidexError):
    """No backend serves the profile or device that was asked for."""

    exit_code = 11


class QueueFull(RequestError):
    """The waiting queue is at its bound: nothing is wrong with the request, it may be sent again later."""

    exit_code = 14


class EngineDied(AmbidexError):
    """The engine's process ended, or hung and was ended: what it was at is lost, the next call starts another."""

    exit_code = 13
