"""e2b_charts with its guesses at orientation replaced by what matplotlib knows.

The package takes bars or boxes of equal height for horizontal ones. So one bar, one box, or equal
bars come out wrong, and several horizontal groups swap their axes back and forth. Its classes, and
so the form of what is extracted, stay.
"""

from __future__ import annotations

from typing import Any

from e2b_charts import chart_figure_to_dict
from e2b_charts.charts.bars import BarChart, BarData, BoxAndWhiskerChart, BoxAndWhiskerData
from e2b_charts.charts.base import Chart2D
from e2b_charts.utils.rounding import dynamic_round

__all__ = ["chart_figure_to_dict"]


def _extract_bars(self: Any, ax: Any) -> None:
    Chart2D._extract_info(self, ax)
    is_swapped = False
    for container in ax.containers:
        group = container.get_label()
        if group.startswith("_container"):
            group = f"Group {int(group[10:])}"
        if getattr(container, "orientation", None) == "horizontal":
            if not is_swapped:
                self._change_orientation()
                is_swapped = True
            labels, values = ax.get_yticklabels(), [bar.get_width() for bar in container]
        else:
            labels, values = ax.get_xticklabels(), [bar.get_height() for bar in container]
        for label, value in zip(labels, values, strict=False):
            self.elements.append(BarData(label=label.get_text(), value=value, group=group))


def _extract_boxes(self: Any, ax: Any) -> None:
    Chart2D._extract_info(self, ax)
    lines = [_points(line) for line in ax.lines]
    boxes = [_corners(patch) for patch in ax.patches]
    # Whiskers are two-point lines that touch a box from outside; along which axis, says which way.
    is_horizontal = bool(boxes) and all(
        any(_is_whisker(_swapped(line), _swapped(box)) for line in lines) for box in boxes
    ) and not all(any(_is_whisker(line, box) for line in lines) for box in boxes)  # fmt: skip
    labels = ax.get_xticklabels()
    if is_horizontal:
        self._change_orientation()
        labels = ax.get_yticklabels()
        lines, boxes = [_swapped(line) for line in lines], [_swapped(box) for box in boxes]
    for label, box in zip(labels, boxes, strict=False):
        (left, right), (low, high) = box
        inside = [(x, y) for x, y in lines if x and left <= min(x) and max(x) <= right]
        pairs = [y for x, y in inside if len(x) == 2]
        medians = [y[0] for y in pairs if y[0] == y[1] and low <= y[0] <= high]
        self.elements.append(
            BoxAndWhiskerData(
                label=label.get_text(),
                min=min([min(y) for y in pairs if max(y) == low and min(y) < low], default=low),
                first_quartile=low,
                median=medians[0],
                third_quartile=high,
                max=max([max(y) for y in pairs if min(y) == high and max(y) > high], default=high),
                outliers=[
                    value
                    for x, y in inside
                    if len(x) != 2 or x[0] == x[1]
                    for value in y
                    if _is_lone(x, y, low, high)
                ],
            )
        )


def _is_lone(x: list[Any], y: list[Any], low: Any, high: Any) -> bool:
    """Points of their own, not the ends of a whisker or a cap."""
    return len(set(x)) == 1 and not (len(y) == 2 and (max(y) == low or min(y) == high))


def _is_whisker(line: Any, box: Any) -> bool:
    (x, y), ((left, right), (low, high)) = line, box
    if len(x) != 2 or x[0] != x[1] or not left <= x[0] <= right:
        return False
    return bool(max(y) == low or min(y) == high)


def _points(line: Any) -> tuple[list[Any], list[Any]]:
    return (
        [dynamic_round(x) for x in line.get_xdata()],
        [dynamic_round(y) for y in line.get_ydata()],
    )


def _corners(patch: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    vertices = patch.get_path().vertices
    x = [dynamic_round(value) for value in vertices[:, 0]]
    y = [dynamic_round(value) for value in vertices[:, 1]]
    return (min(x), max(x)), (min(y), max(y))


def _swapped(pair: Any) -> Any:
    return pair[1], pair[0]


BarChart._extract_info = _extract_bars
BoxAndWhiskerChart._extract_info = _extract_boxes
