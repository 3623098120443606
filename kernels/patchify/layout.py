"""What `patchify` makes of a frame."""

from __future__ import annotations

from dataclasses import dataclass

from vstar_fast.errors import ConfigError


@dataclass(frozen=True)
class Layout:
    """Numbers in units of the frames' 0 to 255; sizes in pixels and frames."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    patch: int = 0
    """Side of a patch; 0: none are made."""
    temporal: int = 1
    """Frames a patch."""
    merge: int = 1
    """Side, in patches, of the square whose patches follow one another."""
    matrix: tuple[float, ...] | None = None
    """Twelve numbers, rows of [3, 4]: colours become matrix @ (c0, c1, c2, 1), rounded and clamped to 0 to 255."""

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean or 0.0 in self.std:
            raise ConfigError(f"mean {self.mean} and std {self.std} must have a number a channel, std none of 0")
        if self.patch < 0 or self.temporal < 1 or self.merge < 1:
            raise ConfigError(f"patch {self.patch}, temporal {self.temporal}, merge {self.merge} are no sizes")
        if self.matrix is not None and len(self.matrix) != 12:
            raise ConfigError(f"a colour matrix has 12 numbers, this one {len(self.matrix)}")


BT601 = (
    *(1.164384, 0.0, 1.596027, -222.921),
    *(1.164384, -0.391762, -0.812968, 135.576),
    *(1.164384, 2.017232, 0.0, -276.836),
)
"""Matrix from limited-range Y, Cb, Cr of ITU-R BT.601 to RGB."""
