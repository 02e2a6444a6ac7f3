"""Every error rdquant raises on purpose, in one tree.

::

    RdquantError                    caught by the command line: one line on stderr, exit code 2
    ├── UsageError                  an argument or option cannot be used as given
    ├── ImageError                  a picture cannot be read, or is of a kind we do not take
    ├── CalibrationError            calibration pictures or observed ranges are unusable
    ├── CurveError                  rate-distortion curves that cannot be compared (BD-rate)
    ├── TrainingError               a training run cannot start, resume or go on
    ├── StudyError                  cells of a study that could not be made; the others are stored
    ├── ModelError                  a model or checkpoint file
    │   ├── BadModel                damaged, incomplete, or values outside the contract
    │   │   └── CaptureError        a network that no graph of our operations can be made of
    │   └── UnknownModel            no such zoo name, path or fingerprint
    └── DecodeError                 an image file (.rdq)
        ├── NotOurFormat            the magic is missing
        ├── UnsupportedVersion      a version, profile or quantizer this release does not know
        ├── Truncated               the file ends before its declared end
        ├── Corrupt                 a checksum, an end state or a field is wrong
        ├── LimitExceeded           a declared size is over the limit
        └── ModelMismatch           the file was written with another model

Messages quote the bad value and say what would do.
"""

from __future__ import annotations


class RdquantError(Exception):
    """Root of every error that rdquant raises on purpose."""


class UsageError(RdquantError, ValueError):
    """An argument or option cannot be used as given."""


class ImageError(RdquantError):
    """A picture cannot be read, or is of a kind rdquant does not take."""


class CalibrationError(RdquantError):
    """Calibration pictures or the ranges observed on them are unusable."""


class CurveError(RdquantError, ValueError):
    """Rate-distortion curves that cannot be compared."""


class TrainingError(RdquantError):
    """A training run cannot start, resume or go on."""


class StudyError(RdquantError):
    """Cells of a study could not be made; the others are stored."""


class ModelError(RdquantError):
    """Something is wrong with a model or checkpoint file."""


class BadModel(ModelError):
    """A model file is damaged, incomplete, or holds values outside the contract."""


class CaptureError(BadModel):
    """A network holds something that is no operation of our graphs; the module is named."""


class UnknownModel(ModelError):
    """No model has this name, path or fingerprint."""


class DecodeError(RdquantError):
    """An image file cannot be decoded."""


class NotOurFormat(DecodeError):
    """The bytes do not begin with rdquant's magic."""


class UnsupportedVersion(DecodeError):
    """The file needs a version, profile or quantizer that this release does not know."""


class Truncated(DecodeError):
    """The file ends before its declared end."""


class Corrupt(DecodeError):
    """A checksum, the entropy coder's end state, or a header field is wrong."""


class LimitExceeded(DecodeError):
    """A declared size is over the decoder's limit."""

    def __init__(self, field: str, value: int, limit: int) -> None:
        super().__init__(
            f"{field} is {value}, over the limit of {limit}; raise the limit if you trust the file"
        )
        self.field, self.value, self.limit = field, value, limit


class ModelMismatch(DecodeError):
    """The file was written with another model."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(f"the file needs model {expected}, this is model {found}")
        self.expected, self.found = expected, found
