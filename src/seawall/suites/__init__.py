"""Suites: several attacks whose worst case is quoted, because any single one is too kind to some model.

Example:
    >>> from seawall.suites.sea import SEA
    >>> [member.name for member in SEA(steps=30).members()]
    ['sea masked-ce 30', 'sea balanced-ce 30', 'sea js 30']
"""

from seawall.suites.member import Attack, Member, Suite, cases, parse_suite

__all__ = ["Attack", "Member", "Suite", "cases", "parse_suite"]
