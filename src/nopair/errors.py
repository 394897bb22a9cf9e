"""Every error a user can cause.

    NopairError                 base; `nopair` prints its message on one line and exits with `exit_code`
    ├── ConfigError             a recipe or an override is wrong: unknown key, wrong type, impossible combination
    ├── ImageError              an image cannot be used: missing, truncated, not an image, too large
    ├── InstructionError        an instruction is empty or a job line is malformed
    ├── ModelError              a model folder is missing, incomplete or of an unsupported family
    ├── JudgeError              a judge cannot answer: ambiguous Yes/No tokens, unknown question set
    ├── OutputError             a result cannot be written
    │   └── PixelsError         as its own pixels cannot; others can
    ├── CheckpointError         a checkpoint is missing, incomplete or belongs to another run
    ├── TrainingError           training cannot go on: non-finite loss, too many bad steps
    ├── DataError               too many bad records, an empty source
    ├── EndpointError           a model's server cannot be used: wrong key, address or model
    │   ├── RefusedError        it refuses one request; others may pass
    │   │   └── ContentRefusedError   for its content, and will again
    │   └── UnavailableError    it gives no answer, however often it is asked
    └── MissingExtraError       an optional dependency is needed; the message names the pip install
    Interrupted                 not an error: a signal asked the run to stop, and it saved and stopped

To add one: subclass `NopairError` here and write a message that says what was wrong, where, and what to do next.
"""


class NopairError(Exception):
    """Base of all user errors. `str(error)` is one line: what, where, what to do next."""

    exit_code = 2


class ConfigError(NopairError):
    """A recipe or a command-line override is wrong."""


class ImageError(NopairError):
    """An image file cannot be used."""


class InstructionError(NopairError):
    """An instruction is empty, or a job line is malformed."""


class ModelError(NopairError):
    """A model folder is missing, incomplete, or of a family nopair does not know."""


class JudgeError(NopairError):
    """A judge cannot answer the questions it is asked."""


class OutputError(NopairError):
    """A result cannot be written where it was asked for."""


class PixelsError(OutputError):
    """An image's own pixels cannot be written, whatever the place: no numbers, or too many for the format."""


class CheckpointError(NopairError):
    """A checkpoint is missing, incomplete, or belongs to another run."""


class TrainingError(NopairError):
    """Training cannot go on."""

    exit_code = 3


class MemoryShortError(NopairError):
    """A device has not enough memory for what was asked of it."""

    exit_code = 3


class DataError(NopairError):
    """The training data cannot be used."""


class EndpointError(NopairError):
    """A model's server cannot be used."""


class RefusedError(EndpointError):
    """A server refuses one request for what it asks; others may pass."""


class ContentRefusedError(RefusedError):
    """A server's filter, or the model itself, will not answer about this content, however often it is asked.

    `words` are what it said, whole.
    """

    def __init__(self, message: str, words: str) -> None:
        super().__init__(message)
        self.words = words


class UnavailableError(EndpointError):
    """A server gives no usable answer after all attempts."""


class MissingExtraError(NopairError):
    """An optional dependency is missing."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"{module} is not installed; run: pip install 'nopair[{extra}]'")


class Interrupted(BaseException):
    """A signal asked the run to stop; the state was saved first. Exit code 130 (Ctrl-C) or 143 (SIGTERM).

    No `Exception`, as KeyboardInterrupt is none: libraries take those for errors of their own.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"stopped by signal {exit_code - 128}")
        self.exit_code = exit_code
