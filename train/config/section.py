"""What every section of a configuration has in common: unknown keys refused, values fixed once read, docstrings as documentation."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One section of a configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)
