"""The exceptions that a user can cause; each message says what is wrong, where, and what to do next."""

from __future__ import annotations


class UnbackdoorError(Exception):
    """Base of all errors that the command line turns into one sentence and an exit code."""


class InputError(UnbackdoorError):
    """An argument, option or combination of inputs that cannot work."""


class UnsuitedError(InputError):
    """A network, or an installation, that lacks what an inspection looks at; other inspections may do."""


class DivergedError(InputError):
    """Training whose loss is no longer a number; a smaller learning rate may do, or other data."""


class ResumeError(UnbackdoorError):
    """A state of an interrupted run that is damaged, or another run's; without it, the same input would do."""


class DataError(UnbackdoorError):
    """A data set that cannot be read or does not fit the job."""


class CheckpointError(UnbackdoorError):
    """A model file that cannot be read, is refused for safety, or does not fit its architecture."""


class UnknownClassesError(CheckpointError):
    """A model file from which the number of classes cannot be told."""


class OutputError(UnbackdoorError):
    """A result that cannot be written."""


class OracleError(UnbackdoorError):
    """A defence reached for something that a defender does not have."""
