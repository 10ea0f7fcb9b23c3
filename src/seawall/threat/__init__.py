"""Threat models in data units: the set of images that an adversary may choose from.

Example:
    >>> from seawall.types import ModelSpec
    >>> spec = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)
    >>> threat = parse_threat("linf 1% reflectance bands=B08", spec)
    >>> threat.eps, threat.bands, str(threat)
    (0.01, (1,), 'linf 1% reflectance bands=B08')
"""

from seawall.records import ThreatFacts
from seawall.threat.model import Ball, ThreatModel
from seawall.threat.parser import parse_threat
from seawall.threat.region import Clouds, Everywhere, Patch, Region

__all__ = ["Ball", "Clouds", "Everywhere", "Patch", "Region", "ThreatFacts", "ThreatModel", "parse_threat"]
