"""What params.yaml's blocks are made of: checked types, and a mistake in one in the words of YAML."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, WrapValidator

from stages.distillation.settings import FromList, Number


class Section(BaseModel):
    """A block of params: frozen, strict types, no unknown key, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) != len(values):
        raise ValueError("expected values that differ from each other")
    return values


def _matching(pattern: str, forms: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"expected {forms}")
        return value

    return AfterValidator(check)


Distinct = AfterValidator(_distinct)
PositiveInt = Annotated[int, Field(ge=1, le=1_000_000)]
NumTokens = Field(le=1 << 27)
NonEmptyList = Field(min_length=1)
Temperature = Annotated[Number, Field(ge=0, le=10)]
_TEMPERATURE = TypeAdapter(Temperature, config=ConfigDict(strict=True, allow_inf_nan=False))
OneOrList = WrapValidator(
    lambda value, check: (
        check(tuple(value)) if isinstance(value, list | tuple) else (_TEMPERATURE.validate_python(value),)
    )
)
DatasetSource = Annotated[
    str,
    _matching(
        r"path:.+|hf:\w[\w.-]*/\w[\w.-]*@\w[\w.-]*|url:https?://[^/@]+(/.*)?|synthetic",
        "path:DIR, hf:OWNER/NAME@REVISION, url:https://... (without user and password) or synthetic",
    ),
]
ModelReference = Annotated[
    str,
    _matching(
        r"hf:\w[\w.-]*/\w[\w.-]*@\w[\w.-]*|path:.+|pypi:\w[\w.-]*==\w[\w.]*|prune:\d+(,\d+)*|distilled:.+",
        "hf:OWNER/NAME@REVISION, path:DIR, pypi:NAME==VERSION or, for a draft, prune:0,1,..., distilled:DIR",
    ),
]
Sha256 = Annotated[str, _matching(r"[0-9a-f]{64}", "64 hexadecimal digits")]
TreeName = Annotated[str, _matching(r"[A-Za-z0-9][\w.-]*", "letters, digits, '_', '.' and '-'")]
TreePaths = Annotated[
    tuple[Annotated[tuple[Annotated[int, Field(ge=0)], ...], FromList], ...], FromList, NonEmptyList
]


# pydantic speaks of Python's types; a params file has YAML's.
_EXPECTATIONS = {
    "extra_forbidden": "no such key",
    "missing": "a value",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a block of keys",
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "too_short": "a list that is not empty",
}


def expectation(kind: str, message: str) -> str:
    """What was expected, of a pydantic error's type and message."""
    if kind in _EXPECTATIONS:
        return _EXPECTATIONS[kind]
    for prefix in ("Value error, ", "expected ", "Input should be "):
        message = message.removeprefix(prefix)
    for long, short in (("greater than or equal to", "at least"), ("less than or equal to", "at most")):
        message = message.replace(long, short)
    return message.replace("greater than", "more than")
