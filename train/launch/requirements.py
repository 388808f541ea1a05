"""Does this interpreter's environment satisfy pyproject.toml? Run by launch.sh with whatever Python is active: standard library only.

    python train/launch/requirements.py pyproject.toml [EXTRA]

Exits 0 and prints the interpreter if so; else exits 1 and prints what is missing.
"""

import sys


def missing_requirements(path: str, extra: str) -> list[str]:
    """What the environment lacks of [project] in the pyproject.toml at `path`, with the extra of that name if it is not empty.

    Raises ImportError where the environment has no `packaging`, or is older than Python 3.11 (`tomllib`).
    """
    import tomllib
    from importlib.metadata import PackageNotFoundError, version

    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    with open(path, "rb") as file:
        project = tomllib.load(file)["project"]
    missing = []
    if "{}.{}.{}".format(*sys.version_info) not in SpecifierSet(project["requires-python"]):
        missing.append(f"Python {project['requires-python']}")
    for text in project["dependencies"] + (project["optional-dependencies"][extra] if extra else []):
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        try:
            # Vendors' builds of torch carry pre-release versions, 2.11.0a0+...: they count.
            if not requirement.specifier.contains(version(requirement.name), prereleases=True):
                missing.append(text)
        except PackageNotFoundError:
            missing.append(text)
    return missing


if __name__ == "__main__":
    try:
        lacks = missing_requirements(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "")
    except ImportError as error:
        lacks = [f"the module {error.name}"]
    print(", ".join(lacks) if lacks else sys.executable)
    sys.exit(1 if lacks else 0)
