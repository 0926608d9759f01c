"""Failures that a user can mend, each with the exit code that the command line returns for it."""

from __future__ import annotations


class ReverieError(Exception):
    """A failure that a user can mend: one line that says what, where, and what to do.

    ``exit_code`` is what the command line returns for it (`reverie.cli` lists the codes).
    """

    exit_code = 70


class ConfigError(ReverieError):
    """A bad command line, configuration or environment name."""

    exit_code = 2


class StoredDataError(ReverieError):
    """A checkpoint or replay on disk that cannot be used: corrupt, foreign, or of another shape."""

    exit_code = 3


class MisfitError(StoredDataError):
    """Stored data of another kind or shape than what is to go on from them."""


class EnvironmentFailure(ReverieError):
    """An environment that failed more often than its restart budget allows."""

    exit_code = 4


class DeviceError(ReverieError):
    """A device or backend that this machine does not have."""

    exit_code = 8
