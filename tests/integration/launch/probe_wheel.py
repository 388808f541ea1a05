"""Wheels small enough to write by hand: for the stand-in project's dependencies here, and for its own build inside pip."""

import zipfile
from pathlib import Path


def make_wheel(folder: str | Path, name: str, version: str, modules: dict[str, str], more_metadata: str = "") -> str:
    """Write NAME-VERSION-py3-none-any.whl with these modules (file name -> source) into the folder; returns the wheel's file name."""
    info = f"{name}-{version}.dist-info"
    files = dict(modules)
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{more_metadata}"
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: probe\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    file = f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(Path(folder) / file, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return file
