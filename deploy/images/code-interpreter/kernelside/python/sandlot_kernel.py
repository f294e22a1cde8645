"""IPython extension of the Python kernel: extra representations, and silent set-up work.

It never imports pandas, matplotlib or PIL by itself: formatters are registered by name, hooks wait
for the import.
"""

from __future__ import annotations

import base64
import datetime
import io
import json
import math
import numbers
import os
from collections.abc import Mapping
from typing import Any

import wrapt
from IPython.core.formatters import BaseFormatter
from IPython.display import display
from traitlets import ObjectName, Unicode

_MAX_DEPTH = 100


class DataFormatter(BaseFormatter):
    format_type = Unicode("e2b/data")
    print_method = ObjectName("_repr_e2b_data_")
    _return_type = dict


class ChartFormatter(BaseFormatter):
    format_type = Unicode("e2b/chart")
    print_method = ObjectName("_repr_e2b_chart_")
    _return_type = dict

    def __call__(self, value: Any) -> Any:
        # Not registered by type: choosing a figure format makes matplotlib's inline backend drop
        # every formatter's registration for figures.
        kinds = {(kind.__module__, kind.__name__) for kind in type(value).__mro__}
        if ("matplotlib.figure", "Figure") in kinds:
            return _figure_chart(value)
        return super().__call__(value)


def load_ipython_extension(shell: Any) -> None:
    formatters = shell.display_formatter.formatters
    data = formatters["e2b/data"] = DataFormatter(parent=shell.display_formatter)
    formatters["e2b/chart"] = ChartFormatter(parent=shell.display_formatter)
    data.for_type_by_name("pandas.core.frame", "DataFrame", _dataframe_columns)
    data.for_type_by_name("pandas", "DataFrame", _dataframe_columns)
    for kind in (list, dict):
        formatters["application/json"].for_type(kind, _json_value)
    formatters["image/png"].for_type_by_name("PIL.Image", "Image", _image_png)
    # PIL offers both; once is enough for clients that show everything they get.
    formatters["image/jpeg"].for_type_by_name("PIL.Image", "Image", lambda image: None)


def set_env(arguments: str) -> None:
    """Set and remove variables; `arguments` is JSON: [values, names to remove]."""
    values, remove = json.loads(arguments)
    os.environ.update(values)
    for name in remove:
        os.environ.pop(name, None)


def _dataframe_columns(frame: Any) -> dict[str, list[Any]]:
    return {
        str(name): [plain(value) for value in frame.iloc[:, place].tolist()]
        for place, name in enumerate(frame.columns)
    }


def _figure_chart(figure: Any) -> dict[str, Any]:
    try:
        from sandlot_charts import chart_figure_to_dict

        return plain(chart_figure_to_dict(figure)) or {}
    except Exception:
        return {}  # the picture is shown all the same


def _json_value(value: Any) -> Any:
    try:
        return plain(value)
    except (TypeError, ValueError, RecursionError):
        return None  # no JSON form: the text form is all there is


def plain(value: Any, depth: int = 0) -> Any:
    """The same in JSON's own types. Raises: TypeError for what has no such form."""
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        return number if math.isfinite(number) else str(number)
    if isinstance(value, Mapping):
        return {_key(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, depth + 1) for item in value]
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        text = value.isoformat()
        return None if text == "NaT" else text
    if hasattr(value, "tolist"):  # numpy's arrays and scalars, without importing numpy
        raw = value.tolist()
        if raw is not value:
            return plain(raw, depth + 1)
    if type(value).__name__ in ("NaTType", "NAType"):
        return None
    if type(value).__module__.startswith("pandas"):
        return str(value)
    if isinstance(value, datetime.timedelta):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _key(key: Any) -> str:
    if isinstance(key, str):
        return key
    value = plain(key)
    return value if isinstance(value, str) else json.dumps(value)


def _image_png(image: Any) -> str | None:
    if image.mode not in ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"):
        image = image.convert("RGBA")
    buffer = io.BytesIO()
    _original_save(image, buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _original_save(image: Any, *args: Any, **kwargs: Any) -> None:
    save = type(image).save
    getattr(save, "__wrapped__", save)(image, *args, **kwargs)


@wrapt.when_imported("PIL.Image")
def _show_images_here(module: Any) -> None:
    """`show` displays instead of looking for a viewer; saving to a path displays as well."""

    def show(self: Any, title: str | None = None, **_: Any) -> None:
        display(self)

    original = module.Image.save

    def save(self: Any, fp: Any, *args: Any, **kwargs: Any) -> None:
        original(self, fp, *args, **kwargs)
        if isinstance(fp, str | os.PathLike):
            display(self)

    save.__wrapped__ = original
    save.__doc__ = original.__doc__
    module.Image.show = show
    module.Image.save = save
