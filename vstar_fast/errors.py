"""Errors users see: each says what is wrong, which value, and what to do."""


class VstarError(Exception):
    """Base of every error this package raises on purpose; the CLI prints it as one line."""


class ConfigError(VstarError):
    """A setting is unknown, misspelt, out of range or at odds with another one."""


class DataError(VstarError):
    """A file, manifest row, label or video cannot be used."""


class BackendError(VstarError):
    """A backend was asked for that is not built, not installed or has no device."""


class ModelError(VstarError):
    """A model folder, processor or adapter cannot be used."""


class NotPacked(ModelError):
    """Rows would not come out packed as they do alone; they can be trained on one by one."""


class RunError(VstarError):
    """The run folder cannot be written, belongs to another configuration, or has nothing usable left."""


class NothingKept(RunError):
    """No answer of a cycle passed, so there is nothing to fine-tune on."""


OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: on a CPU torch says so in the words of a RuntimeError."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY)


class ConstrainError(VstarError, ValueError):
    """A template, vocabulary, grammar or decode state of `constrain` cannot be used as asked."""
