"""A full sample of any message: every field has a value, the same one each time. For golden wire files."""

import types
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import AwareDatetime, BaseModel

M = TypeVar("M", bound=BaseModel)

_PLAIN: dict[Any, Any] = {
    str: "text",
    int: 7,
    float: 1.5,
    bool: True,
    datetime: datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC),
    AwareDatetime: datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC),
}


def sample(model: type[M]) -> M:
    """Return a message whose fields are all set."""
    return model.model_validate({name: _value(field.annotation) for name, field in model.model_fields.items()})


def _value(annotation: Any) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in {Annotated, Union, types.UnionType}:
        return _value(next(each for each in arguments if each is not type(None)))
    if origin is Literal:
        return arguments[0]
    if origin in {tuple, list}:
        return [_value(each) for each in arguments if each is not Ellipsis]
    return {"key": _value(arguments[1])} if origin is dict else _leaf(annotation)


def _leaf(annotation: Any) -> Any:
    if annotation is Any:
        return {"any": [1, None]}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return sample(annotation).model_dump()
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return next(iter(annotation)).value
    if annotation not in _PLAIN:
        raise TypeError(f"no sample for {annotation!r}")
    return _PLAIN[annotation]
