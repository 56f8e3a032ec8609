"""The lesson's texts, named the same way everywhere."""

from __future__ import annotations

TITLES = {
    "000": "Deep Learning Basics",
    "001": "Deep Learning Basics: Architectures & Training",
    "002": "Deep Learning Intro",
    "003": "Deep Learning Overview",
    "004": "ML Deep Learning Introduction",
}


def text(number: str, section: str) -> str:
    """Returns a text's number, title and section, as a claim names its source.

    >>> text("003", "Training Deep Networks")
    'text 003, "Deep Learning Overview", Training Deep Networks'

    Raises:
      ValueError: on a number that no text of the lesson has.
    """
    if number not in TITLES:
        raise ValueError(f"text: the lesson has the texts {', '.join(TITLES)}, got {number!r}")
    return f'text {number}, "{TITLES[number]}", {section}'
