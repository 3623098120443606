"""Why a clip gives no frames: a reason a count can be made of, the detail, and what to do about it."""

from __future__ import annotations

REMEDIES = {
    "missing_file": "mend the path in the data, or put the file there",
    "unreadable": "check access and the disk; the next run tries it again",
    "empty_file": "copy or download the file again",
    "not_a_video": "take it out of the data, or convert it to a video",
    "no_video_stream": "take it out of the data: it has sound only",
    "truncated": "copy or download the file again; a window before the damage can still be used",
    "too_long": "cut a window with start_s/end_s, or raise data.max_duration_s",
    "window_outside": "mend start_s/end_s of this row",
    "label_outside": "mend the label: times are seconds, not pictures, from the start of the clip or its window",
    "index_outside": "ask for pictures or times inside the window",
    "too_large": "ask for smaller frames, or cut the clip to a shape nearer to a square; or take it out of the data",
    "decode_error": "play it with ffmpeg to see the fault; re-encode it or take it out of the data",
    "too_slow": "raise frames.limit_s, or re-encode the clip with more key pictures",
    "decoder_crashed": "re-encode it or take it out of the data; the decoder was started again",
}
"""Every reason that reading frames gives in a `Rejected` record, and the remedy printed with it."""

REASONS = tuple(REMEDIES)


class Unusable(Exception):
    """One clip cannot be used; `reason` is a key of REMEDIES."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason

    def __reduce__(self) -> tuple[type[Unusable], tuple[str, str]]:
        return Unusable, (self.reason, str(self))
