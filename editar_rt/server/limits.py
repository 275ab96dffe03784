"""Every number that bounds what a client may ask for, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass

FORM_FIELDS = 40  # plain fields of one form
FIELD_BYTES = 64 << 10
FILES = 3  # one more than are used, so that a second picture gets a message of its own
PROMPT_CHARACTERS = 32_000
HEADER_BYTES = 64 << 10
KEEP_ALIVE_SECONDS = 5
COMMENT_SECONDS = 10.0  # between signs of life in a stream
CONNECTIONS = 800  # open at once, unless the system allows fewer; the slowest sender is closed for another one
FILES_ELSEWHERE = 100  # open files that are no connections: weights, logs
HEARTBEAT_SECONDS = 30.0  # without a sign of the engine's thread, and longer than its longest step
DRAINED_FACTOR = 2  # a body that is too large is read up to this multiple of the limit, so that the answer arrives


@dataclass(frozen=True)
class Limits:
    """What the operator may change."""

    pictures: int = 8
    """Pictures that are edited at once, and the largest n of a request."""
    queue: int = 32
    """Pictures that may wait beside them."""
    queue_timeout: float = 300
    """Seconds that a picture may wait."""
    timeout: float = 600
    """Seconds from a request's arrival to its answer."""
    preview_share: float = 0.1
    """Largest share of the steps' time that partial pictures take; 1 sets no limit."""
    max_body: int = 20 << 20
    """Bytes of a request."""
    max_pixels: int = 16_000_000
    """Pixels of one picture."""
    receive_timeout: float = 30
    """Seconds in which a whole request must arrive."""
    send_timeout: float = 60
    """Seconds in which a client must take what waits for it."""
    grace: float = 30
    """Seconds that running edits get after SIGTERM."""
