"""A message with a text."""

from dataclasses import dataclass


@dataclass
class String:
    data: str = ""
