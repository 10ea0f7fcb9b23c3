"""Evasion attacks: one file each, a frozen value whose call returns adversarial images.

Example:
    >>> from seawall.attacks.target import Hide, parse_goal
    >>> parse_goal("hide water") == Hide("water")
    True
"""

from seawall.attacks.target import Goal, Hide, LeastLikely, Towards, Untargeted, parse_goal

__all__ = ["Goal", "Hide", "LeastLikely", "Towards", "Untargeted", "parse_goal"]
