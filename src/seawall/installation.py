"""Installed packages, facts of the machine, and registered methods with their settings."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from dataclasses import MISSING, fields

from seawall import __version__, registry
from seawall.errors import UsageError, did_you_mean
from seawall.result import ResultRow

GDAL_DRIVERS = ("GTiff", "COG", "JP2OpenJPEG", "SENTINEL2", "GPKG", "GeoJSON")


def package_rows() -> list[ResultRow]:
    """Return a row per dependency: name, wanted, installed, extra, state."""
    rows: list[ResultRow] = []
    for line in importlib.metadata.requires("seawall") or []:
        requirement, _, marker = line.partition(";")
        name = re.split(r"[\[<>=~! ]", requirement.strip())[0]
        extra = re.search(r"extra == ['\"](\w+)['\"]", marker)
        if extra and extra.group(1) in ("test", "lint"):
            continue
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "missing"
        state = "ok" if version != "missing" else "optional" if extra else "missing"
        wanted = requirement.strip()[len(name) :]
        rows.append(
            {
                "package": name,
                "wanted": wanted,
                "installed": version,
                "extra": extra.group(1) if extra else "",
                "state": state,
            }
        )
    return rows


def machine_facts() -> dict[str, str | int | float | None]:
    """Return versions, devices, memory, raster drivers and warnings of this machine."""
    import psutil
    import rasterio
    import torch
    from rasterio.env import Env

    with Env() as env:
        drivers = env.drivers()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts: dict[str, str | int | float | None] = {
        "seawall": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gdal": rasterio.__gdal_version__,
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "devices": ", ".join(["cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]),
        "drivers": ", ".join(d for d in GDAL_DRIVERS if d in drivers),
        "missing_drivers": ", ".join(d for d in GDAL_DRIVERS if d not in drivers) or None,
    }
    if warning := _torchvision_warning():
        facts["warning"] = warning
    if warning := _torch_warning(torch.__version__):
        facts["warning_torch"] = warning
    facts |= {f"plug-in {name} does not load": why for name, why in registry.broken_plugins().items()}
    return facts


def method_rows(kind: str = "") -> list[ResultRow]:
    """Return a row per registered method of a kind, or of all kinds."""
    kinds = [kind] if kind else list(registry.HOMES)
    return [
        {"kind": entry.kind, "name": entry.name, "summary": entry.summary, "paper": entry.paper}
        for each in kinds
        for entry in registry.entries(each)
    ]


def setting_rows(kind: str, name: str) -> tuple[ResultRow, list[ResultRow]]:
    """Return a row on a method with the module that defines it, and a row per setting.

    Raises:
        UsageError: There is no such method.
    """
    kinds = [kind] if kind else list(registry.HOMES)
    found = [entry for each in kinds for entry in registry.entries(each) if entry.name == name]
    if not found:
        known = [entry.name for each in kinds for entry in registry.entries(each)]
        raise UsageError(f"methods: unknown name {name!r}; {did_you_mean(name, known)}")
    entry = found[0]
    rows: list[ResultRow] = [
        {"setting": f.name, "type": str(f.type), "default": "required" if f.default is MISSING else repr(f.default)}
        for f in fields(entry.make)
    ]
    about: ResultRow = {
        "kind": entry.kind, "name": entry.name, "summary": entry.summary, "paper": entry.paper, "module": entry.make.__module__,
    }  # fmt: skip
    if others := [other.kind for other in found[1:]]:
        about = {**about, "also of kind": f"{', '.join(others)}; add --kind"}
    return about, rows


def _torch_warning(version: str) -> str:
    """Return a warning about a torch release whose weights_only loader can be made to execute code.

    Example:
        >>> _torch_warning("2.9.1+cpu")
        'torch 2.9.1+cpu: CVE-2026-24747 affects its weights_only loader; update to 2.10, and load no .pt file of strangers'
        >>> _torch_warning("2.13.0+cpu")
        ''
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) >= (2, 10):
        return ""
    return f"torch {version}: CVE-2026-24747 affects its weights_only loader; update to 2.10, and load no .pt file of strangers"


def _torchvision_warning() -> str:
    """Return a warning about a torchvision that does not match torch: importing torchmetrics would fail."""
    try:
        importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return ""
    try:
        import torchvision  # type: ignore[import-untyped,import-not-found,unused-ignore] # noqa: F401
    except RuntimeError as broken:
        return f"torchvision does not match torch ({broken}); uninstall it or install the build for this torch"
    return ""
