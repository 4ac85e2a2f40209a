"""In place of jaxtyping where it is not installed: shapes in annotations, which nobody checks at run time."""

from typing import Any


class _Annotation:
    def __class_getitem__(cls, item: Any) -> Any:
        return item[0]


Float = Integer = UInt8 = Bool = _Annotation
