"""Stopping: text that ends before the first of some strings, wherever its pieces are cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence


def stop_strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    """Returns `stop` as a tuple: one string, or several.

    Raises:
      ValueError: something else, or an empty string.
    """
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    for string in strings:
        if not isinstance(string, str) or not string:
            raise ValueError(f"expected stop strings of at least one character, got {string!r}")
    return strings


def until(
    pieces: Iterable[str], stop: Sequence[str], on_stop: Callable[[], None] = lambda: None
) -> Iterator[str]:
    """Yields `pieces` up to the first place where one of the strings begins.

    What may turn out to be the beginning of such a string is held back until it is clear. Nothing
    is taken from `pieces` after a string was found.

    Args:
      pieces: text in pieces.
      stop: strings, none of them empty.
      on_stop: called when one of them is found.
    """
    held = ""
    for piece in pieces:
        held += piece
        places = [place for place in (held.find(string) for string in stop) if place >= 0]
        if places:
            on_stop()
            if held[: min(places)]:
                yield held[: min(places)]
            return
        safe = len(held) - _begun(held, stop)
        if safe:
            yield held[:safe]
            held = held[safe:]
    if held:
        yield held


def _begun(text: str, stop: Sequence[str]) -> int:
    """Returns how many characters at the end of `text` may be the beginning of a stop string."""
    longest = min(max((len(s) for s in stop), default=1) - 1, len(text))
    for length in range(longest, 0, -1):
        if any(string.startswith(text[-length:]) for string in stop):
            return length
    return 0
