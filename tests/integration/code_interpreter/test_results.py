"""What each kind of value looks like on the wire, charts included, on real libraries."""

from __future__ import annotations

import base64

import pytest

# The first test may have to wait for the image to be built.
pytestmark = [pytest.mark.docker, pytest.mark.timeout(1500)]

PNG = b"\x89PNG"


def fields(result):
    return {name for name in result if name not in ("type", "is_main_result")}


def is_png(result):
    return base64.b64decode(result["png"]).startswith(PNG)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("'text'", {"text": "text"}),
        ('"it\'s"', {"text": "it's"}),
        ("[1, 'a', None]", {"text": "[1, 'a', None]", "json": [1, "a", None]}),
        ("{1: float('nan'), 'k': float('inf')}", {"json": {"1": "nan", "k": "inf"}}),
        ("import numpy as np; {'a': np.arange(3)}", {"json": {"a": [0, 1, 2]}}),
        ("from IPython.display import HTML; HTML('<b>ü</b>')", {"html": "<b>ü</b>"}),
        ("from IPython.display import Markdown; Markdown('# x')", {"markdown": "# x"}),
        ("from IPython.display import SVG; SVG('<svg></svg>')", {"svg": "<svg/>"}),
        ("from IPython.display import Latex; Latex('$x$')", {"latex": "$x$"}),
        ("from IPython.display import JSON; JSON({'a': 1})", {"json": {"a": 1}}),
        ("from IPython.display import Javascript; Javascript('1')", {"javascript": "1"}),
    ],
)
def test_values_become_named_fields(interpreter, code, expected):
    done = interpreter.run(code)
    assert done.error is None
    assert expected.items() <= done.results[-1].items()
    assert done.results[-1]["is_main_result"] is True


def test_values_without_a_json_form_are_text_only(interpreter):
    done = interpreter.run("[object]")
    assert fields(done.results[0]) == {"text", "extra"}


def test_a_raw_bundle_gives_exactly_its_fields(interpreter):
    code = "from IPython.display import display\ndisplay({}, raw=True)"
    done = interpreter.run(code.format("{'text/latex': 'x'}"))
    assert fields(done.results[0]) == {"latex", "extra"}
    done = interpreter.run(code.format("{'application/pdf': 'QQ==', 'x/y': {'a': [1]}}"))
    assert (done.results[0]["pdf"], done.results[0]["extra"]) == ("QQ==", {"x/y": {"a": [1]}})


def test_an_object_with_its_own_data(interpreter):
    done = interpreter.run(
        "class A:\n  def _repr_e2b_data_(self): return {'c': [1]}\n"
        "  def _repr_e2b_chart_(self): return {'type': 'x'}\nA()"
    )
    assert (done.results[0]["data"], done.results[0]["chart"]) == ({"c": [1]}, {"type": "x"})


def test_a_data_frame_has_its_columns(interpreter):
    done = interpreter.run(
        "import pandas as pd\npd.DataFrame({'b': [1, 2], 'a': [1.5, None],"
        " 't': pd.to_datetime(['2020-01-02', None]), 's': ['x', None]})"
    )
    result = done.results[0]
    assert result["data"] == {
        "b": [1, 2],
        "a": [1.5, "nan"],
        "t": ["2020-01-02T00:00:00", None],
        "s": ["x", None],
    }
    assert list(result["data"]) == ["b", "a", "t", "s"]
    assert "<table" in result["html"]


def test_displays_come_in_order_and_before_the_value(interpreter):
    done = interpreter.run(
        "from IPython.display import display\nprint(1)\ndisplay('a')\nimport sys\n"
        "print(2, flush=True)\ndisplay('b')\n'c'"
    )
    shown = [line["text"] for line in done.lines if line["type"] in ("stdout", "result")]
    assert shown == ["1\n", "a", "2\n", "b", "c"]


def test_images_are_shown_saved_and_returned(interpreter):
    interpreter.run("from PIL import Image; image = Image.new('RGBA', (4, 4), 'red')")
    for code in (
        "print('x'); image.show(); print('y')",
        "print('x'); image",
        "image.save('/tmp/i.png'); print('y')",
    ):
        done = interpreter.run(code)
        assert len(done.results) == 1
        assert is_png(done.results[0])
        assert fields(done.results[0]) == {"png", "text", "extra"}
    assert interpreter.run("image.save(open('/tmp/j.png', 'wb'), 'PNG')").results == []
    assert interpreter.sh("head -c 4 /tmp/i.png | tail -c 3") == "PNG"


def chart(interpreter, code):
    done = interpreter.run(f"import matplotlib.pyplot as plt\n{code}\nplt.show()")
    assert done.error is None, done.error
    (result,) = done.results
    assert is_png(result)
    assert (result["extra"], result["is_main_result"]) == ({}, False)
    return result["chart"]


def test_a_plot_and_a_value_are_two_results(interpreter):
    done = interpreter.run("import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show(); 'v'")
    assert [sorted(fields(result)) for result in done.results] == [
        ["chart", "extra", "png", "text"],
        ["extra", "text"],
    ]
    done = interpreter.run("plt.plot([1, 2])")  # closed at the end of the cell
    assert [is_png(result) for result in done.results if "png" in result] == [True]
    assert interpreter.run("1").results[0].keys() & {"png"} == set()


def test_line_chart(interpreter):
    found = chart(
        interpreter,
        "import datetime\ndays = [datetime.date(2020, 1, d) for d in (1, 2, 3)]\n"
        "plt.plot(days, [1.0, 2.0, 3.5], label='speed'); plt.xlabel('day'); plt.ylabel('v (m/s)')\n"
        "plt.title('T')",
    )
    assert (found["type"], found["title"], found["x_scale"]) == ("line", "T", "datetime")
    assert (found["y_label"], found["y_unit"], found["x_unit"]) == ("v (m/s)", "m/s", None)
    (line,) = found["elements"]
    assert line["label"] == "speed"
    assert [point[1] for point in line["points"]] == [1.0, 2.0, 3.5]
    assert line["points"][0][0].startswith("2020-01-01")
    assert all(isinstance(tick, str) for tick in found["x_ticks"])


def test_scatter_chart(interpreter):
    found = chart(
        interpreter,
        "plt.scatter([1, 2], [3, 4], label='a'); plt.scatter([5], [6], label='b')",
    )
    assert (found["type"], found["title"]) == ("scatter", None)
    assert [(e["label"], e["points"]) for e in found["elements"]] == [
        ("a", [[1, 3], [2, 4]]),
        ("b", [[5, 6]]),
    ]


def test_bar_chart(interpreter):
    found = chart(interpreter, "plt.bar(['x', 'y'], [3, 7], label='g')")
    assert found["type"] == "bar"
    assert found["elements"] == [
        {"label": "x", "group": "g", "value": 3},
        {"label": "y", "group": "g", "value": 7},
    ]
    assert (found["x_unit"], found["y_unit"]) == (None, None)


def test_pie_chart(interpreter):
    found = chart(interpreter, "plt.pie([90, 10], labels=['a', 'b'])")
    assert found["type"] == "pie"
    assert [(e["label"], e["angle"], e["radius"]) for e in found["elements"]] == [
        ("a", pytest.approx(324), 1),
        ("b", pytest.approx(36), 1),
    ]


def test_box_chart(interpreter):
    found = chart(
        interpreter,
        "import warnings; warnings.simplefilter('ignore')\n"
        "plt.boxplot([[1, 2, 3, 4, 5, 20], [2, 4, 6]], labels=['a', 'b'], patch_artist=True)",
    )
    assert found["type"] == "box_and_whisker"
    first, second = found["elements"]
    assert (first["label"], first["min"], first["first_quartile"]) == ("a", 1, 2.25)
    assert (first["median"], first["third_quartile"], first["max"]) == (3.5, 4.75, 5)
    assert first["outliers"] == [20]
    assert (second["label"], second["median"], second["outliers"]) == ("b", 4, [])


def test_one_box_and_equal_bars_are_not_turned(interpreter):
    found = chart(
        interpreter, "plt.boxplot([[1, 2, 3, 4, 5, 20, 21]], labels=['one'], patch_artist=True)"
    )
    (box,) = found["elements"]
    assert (box["label"], box["min"], box["median"]) == ("one", 1, 4)
    found = chart(interpreter, "plt.bar(['a', 'b'], [5, 5]); plt.ylabel('n (kg)')")
    assert [(e["label"], e["value"]) for e in found["elements"]] == [("a", 5), ("b", 5)]
    assert (found["y_label"], found["y_unit"]) == ("n (kg)", "kg")
    found = chart(interpreter, "plt.barh(['a', 'b'], [5, 6]); plt.xlabel('n')")
    assert [(e["label"], e["value"]) for e in found["elements"]] == [("a", 5), ("b", 6)]
    assert (found["x_label"], found["y_label"]) == (None, "n")


def test_log_scale_and_categories(interpreter):
    found = chart(interpreter, "plt.plot([1, 10, 100], [1, 2, 3]); plt.xscale('log')")
    assert found["x_scale"] == "log"
    found = chart(interpreter, "plt.plot([1, 2], ['low', 'high'])")
    assert (found["y_scale"], found["y_tick_labels"]) == ("categorical", ["low", "high"])


def test_several_axes_are_a_superchart_and_unknown_stays_unknown(interpreter):
    found = chart(
        interpreter,
        "f, (a, b) = plt.subplots(1, 2); a.plot([1, 2]); b.bar(['q'], [1]); f.suptitle('S')",
    )
    assert (found["type"], found["title"]) == ("superchart", "S")
    assert [element["type"] for element in found["elements"]] == ["line", "bar"]
    found = chart(interpreter, "plt.gca().add_patch(plt.Circle((0, 0), 1)); plt.title('C')")
    assert (found["type"], found["title"], found["elements"]) == ("unknown", "C", [])


def test_cjk_text_has_a_font(interpreter):
    done = interpreter.run(
        "import matplotlib.pyplot as plt\nplt.title('日本語 한국어 中文')\n"
        "plt.plot([1])\nplt.show()"
    )
    assert done.stderr == []


@pytest.mark.parametrize(
    ("language", "code", "stdout", "text"),
    [
        ("python", "!pwd", "/home/user", None),
        ("python", "import asyncio\nawait asyncio.sleep(0, 'x')", "", "x"),
        ("python", "  a = 1\n  a + 1\n", "", "2"),
        ("python", "1 + 1;", "", None),
        ("js", "console.log('x')", "x", None),
        ("js", "import { basename } from 'node:path'\nbasename('/a/b')", "", "b"),
        ("js", "import fs, * as all from 'fs'; all.readFileSync === fs.readFileSync", "", "true"),
        ("js", "await Promise.resolve('Hello')", "", "Hello"),
        ("js", "Promise.resolve(7)", "", "7"),
        ("js", "undefined", "", None),
        ("js", "({a: 1})", "", "{ a: 1 }"),
        ("js", "const q = 1; const w = q + 1\nw;", "", "2"),
        ("js", "const q = 3; q", "", "3"),
        ("js", "f(2); function f(x) { return x * 2 }\nf(4)", "", "8"),
        ("js", "let [a, {b = 5}] = [1, {}]; a + b", "", "6"),
        ("js", "for (var i = 0; i < 3; i++) {}\ni", "", "3"),
        ("js", "class A { static v = 4 }\nA.v // end", "", "4"),
        ("js", "require('path').sep", "", "/"),
        ("js", "process.cwd()", "", "/home/user"),
        ("ts", "const n: number = 5; type T = string; enum E { A = 3 }; n + E.A", "", "8"),
        ("ts", "process.cwd()", "", "/home/user"),
        ("bash", "pwd", "/home/user", None),
        ("r", "print('x')", '[1] "x"', None),
        ("java", 'System.getProperty("user.dir")', "", "/home/user"),
        ("java", "int x = 20; x + 1", "", "21"),
    ],
)  # fmt: skip
def test_each_language_speaks_its_own_way(interpreter, language, code, stdout, text):
    done = interpreter.run(code, language=language)
    assert done.error is None, done.error
    assert ("".join(done.stdout).strip(), done.text) == (stdout, text)


def test_single_messages(interpreter):
    assert interpreter.run("print('a\\nb')").stdout == ["a\nb\n"]
    assert interpreter.run("console.log('a', 1)", language="js").stdout == ["a 1\n"]
    assert interpreter.run("print('hi')", language="r").stdout == ['[1] "hi"\n']
    assert interpreter.run('System.out.println("x")', language="java").stdout[0] == "x"
    assert interpreter.run("echo a; echo b", language="bash").stdout == ["a\n", "b\n"]
    assert interpreter.run("import sys; print('e', file=sys.stderr)").stderr == ["e\n"]


def test_r_values_are_displays(interpreter):
    done = interpreter.run("getwd()", language="r")
    assert done.results[0]["text"] == '[1] "/home/user"'
    assert done.results[0]["is_main_result"] is False
    assert is_png(interpreter.run("plot(1:3)", language="r").results[0])


@pytest.mark.parametrize(
    ("language", "code", "name", "value"),
    [
        ("python", "1 / 0", "ZeroDivisionError", "division by zero"),
        ("python", "def", "SyntaxError", "invalid syntax"),
        ("js", "throw new TypeError('bad')", "TypeError", "bad"),
        ("js", "let x = ;", "SyntaxError", "Unexpected token"),
        ("js", "nope", "ReferenceError", "nope is not defined"),
        ("ts", "let x: = 1", "SyntaxError", ""),
        ("bash", "false", "", "1"),
        ("bash", "ls /nope 2>/dev/null", "", "2"),
        ("r", "stop('bad')", "ERROR", "bad"),
        ("java", "int x = ;", "CompilationException", ""),
    ],
)
def test_errors_are_named(interpreter, language, code, name, value):
    error = interpreter.run(code, language=language).error
    assert (error["name"], value in error["value"]) == (name, True)
    assert "\x1b" not in error["traceback"]


def test_javascript_errors_point_at_the_users_lines(interpreter):
    error = interpreter.run(
        "const before = 1\nfunction boom() {\n  throw new Error('x')\n}\n\nboom()", language="js"
    ).error
    lines = error["traceback"].split("\n")
    assert lines[0] == "Error: x"
    assert "boom" in lines[1]
    assert lines[1].endswith(":3:9)")
    assert ":6:" in lines[2]
    assert len(lines) == 3
