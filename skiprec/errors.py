"""Errors that a caller may want to catch. Each message says where, what was found, and what was expected."""


class SkiprecError(Exception):
    """Something that the user can mend. The command line prints it as one line and exits with 1."""


class DatasetError(SkiprecError):
    """A log or a dataset folder is not what it should be."""


class ConfigError(SkiprecError, ValueError):
    """A setting or a recipe is unknown, of the wrong type, or out of range."""


class OutputError(SkiprecError):
    """Something could not be written: it exists already, or the disk is full."""


class CheckpointError(SkiprecError):
    """A checkpoint is damaged, or belongs to other data or other settings."""


class RequestError(SkiprecError, ValueError):
    """A session that is asked about, or how it is asked, is not what it should be."""


class TrainingDiverged(SkiprecError):
    """A loss or a score is no longer a finite number."""


class OutOfMemory(SkiprecError):
    """A step asked for more memory than the device has."""


class TrainingStopped(SkiprecError):
    """Training was asked to stop between two steps. The last epoch's end is the place to go on from."""


class StudyError(SkiprecError):
    """A study cannot be made, found or continued as asked."""
