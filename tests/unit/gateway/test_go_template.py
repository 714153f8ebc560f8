"""Go's text/template: against recorded answers of Go, beyond Go 1.19, and hostile templates."""

from __future__ import annotations

import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kloros_llm.gateway.go_template import Budget, TemplateError, execute, parse
from kloros_llm.gateway.go_template.formatting import sprintf
from kloros_llm.gateway.go_template.go_json import marshal

RECORDED = json.loads((Path(__file__).parent / "data" / "go_templates.json").read_text())["cases"]


def render(template: str, data: dict[str, Any] | None = None, budget: Budget | None = None) -> str:
    return execute(parse(template), data or {}, budget)


def refusal(template: str, data: dict[str, Any] | None = None, budget: Budget | None = None) -> str:
    with pytest.raises(TemplateError) as caught:
        render(template, data, budget)
    return str(caught.value)


def test_what_go_renders() -> None:
    cases = [case for case in RECORDED if "output" in case]
    assert len(cases) > 900
    for case in cases:
        assert render(case["template"], case["data"]) == case["output"], case["template"]


def test_what_go_refuses() -> None:
    """A template that Go does not read is refused in Go's words."""
    cases = [case for case in RECORDED if "error" in case]
    assert len(cases) > 100
    for case in cases:
        assert refusal(case["template"], case["data"]) == case["error"], case["template"]


def test_what_go_fails_to_render() -> None:
    cases = [case for case in RECORDED if "fails" in case]
    assert len(cases) > 100
    for case in cases:
        refusal(case["template"], case["data"])


@pytest.mark.parametrize(
    ("template", "data", "expected"),
    [
        # Since Go 1.23: else with; since 1.24: range over an integer.
        ("{{ with .A }}a{{ else with .B }}{{ . }}{{ else }}c{{ end }}", {"B": "b"}, "b"),
        ("{{ with .A }}a{{ else with .B }}{{ . }}{{ else }}c{{ end }}", {}, "c"),
        ("{{ range 3 }}{{ . }}{{ end }}", {}, "012"),
        ("{{ range $i := .N }}{{ $i }}{{ else }}none{{ end }}", {"N": 0}, "none"),
        # Since Go 1.22 an assignment in range sets the variables that are there.
        ("{{ $x := 0 }}{{ range $x = .L }}{{ end }}{{ $x }}", {"L": [4, 5]}, "5"),
        ("{{ $i := 9 }}{{ $x := 9 }}{{ range $i, $x = .L }}{{ end }}{{ $i }}{{ $x }}",
         {"L": [4, 5]}, "15"),
        # Since Go 1.22.
        ("{{ json .S }}", {"S": "\b\f"}, '"\\b\\f"'),
        # Bytes of strings.
        ("{{ len .S }} {{ index .S 1 }} {{ slice .S 0 3 }}", {"S": "a€"}, "4 226 a\ufffd\ufffd"),
        ('{{ print (slice .S 0 2) (slice .S 2) }}', {"S": "€"}, "€"),
        ("{{ range $k, $v := .M }}{{ $k }}={{ $v }} {{ end }}", {"M": {"b": 1, "a": None}},
         "a=<no value> b=1 "),
        ("{{ .Missing }}|{{ print .Missing }}|{{ json .Missing }}", {},
         "<no value>|<nil>|null"),
        ("{{ and .A (index .A 5) }}{{ or 1 (index .A 5) }}", {"A": []}, "[]1"),
        ("a \n{{- /* no */ -}}\n b", {}, "ab"),
        ("{{- 3 -}} x {{ -3 }}", {}, "3x -3"),
    ],
)  # fmt: skip
def test_renders(template: str, data: dict[str, Any], expected: str) -> None:
    assert render(template, data) == expected


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{{ foo }}", 'template: :1: function "foo" not defined'),
        ("\n{{ if }}", "template: :2: missing value for if"),
        ("{{ call .F }}",
         'template: :1: function "call" is not supported: no value is a function'),
        ("a\n{{ 1i }}", "template: :2: complex number 1i is not supported"),
        ("{{ .A", "template: :1: unclosed action"),
        ("{{ if .A }}", "template: :1: unexpected EOF"),
        ("{{ end }}", "template: :1: unexpected {{end}}"),
        ("{{ break }}", "template: :1: {{break}} outside {{range}}"),
        ("{{ range .A }}{{ block \"b\" . }}{{ break }}{{ end }}{{ end }}",
         "template: :1: {{break}} outside {{range}}"),
        ("{{ $x }}", 'template: :1: undefined variable "$x"'),
        ("{{ if 1 }}{{ $x := 1 }}{{ end }}{{ $x }}", 'template: :1: undefined variable "$x"'),
        ("{{ if .A }}{{ else with .B }}{{ end }}", "template: :1: unexpected <with> in input"),
        ("{{ 9999999999999999999 }}", "template: :1: 9999999999999999999 overflows int"),
        ("{{ \"a\\q\" }}", "template: :1: invalid syntax"),
        ("x\n  {{ .A.B }}",
         'template: :2:7: executing "" at <.A.B>: nil pointer evaluating interface {}.B'),
        ("{{ len 3 }}",
         'template: :1:3: executing "" at <len 3>: error calling len: len of type int'),
        ('{{ template "x" }}',
         'template: :1:12: executing "" at <{{template "x"}}>: template "x" not defined'),
        ('{{ printf "%*d" 1 2 }}',
         "template: :1: printf: '*' in the format \"%*d\" is not supported"),
        ('{{ printf "%x" 1.5 }}', 'template: :1:3: executing "" at <printf "%x" 1.5>: '
         "error calling printf: %x of a float64 is not supported"),
    ],
)  # fmt: skip
def test_says_where_and_what(template: str, error: str) -> None:
    assert refusal(template) == error


def test_dates() -> None:
    today = date.today()
    text = render('{{ currentDate }} {{ currentDate "2006" }} {{ yesterdayDate }}')
    assert text == f"{today} {today} {today - timedelta(1)}"


def test_hostile_templates_end() -> None:
    many = "{{ range $.L }}" * 8 + "x" + "{{ end }}" * 8
    assert "too m" in refusal(many, {"L": list(range(100))})
    double = "{{ $x := .S }}{{ range 200 }}{{ $x = print $x $x }}{{ end }}"
    assert "too m" in refusal(double, {"S": "x" * 1000})
    escapes = "{{ $x := .S }}{{ range 200 }}{{ $x = urlquery $x }}{{ end }}"
    assert "too m" in refusal(escapes, {"S": "%" * 1_000_000})
    assert "too m" in refusal("{{ range 1000000000000 }}{{ end }}")
    again = '{{ define "a" }}{{ template "a" . }}{{ end }}{{ template "a" . }}'
    assert "depth" in refusal(again)
    assert "nested deeper" in refusal("{{ if 1 }}" * 5000)
    assert "nested deeper" in refusal("{{ " + "(" * 5000)
    assert "longer than" in refusal("x" * 2_000_000)
    long = {"L": [0] * 20_000, "S": "é" * 5_000_000}
    for action in ("slice $.L", "print $.L", "json $.L", "$.L", "len $.S", "eq $.S $.T", "js $.S"):
        loop = f"{{{{ range .L }}}}{{{{ $y = {action} }}}}{{{{ $y }}}}{{{{ end }}}}"
        data = {**long, "T": "é" * 4_999_999 + "x"}
        assert "too m" in refusal("{{ $y := 0 }}" + loop, data, Budget(steps=50_000))
    assert "too m" in refusal(
        "{{ range 50 }}{{ $.L }}{{ end }}", {"L": [0] * 1000}, Budget(steps=10_000)
    )
    with pytest.raises(ValueError, match="width"):
        sprintf("%9999999999d", [1])


def test_long_templates_are_read_in_time() -> None:
    assert render("{{- 1 -}}   \n" * 20_000) == "1" * 20_000


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1e21, "1e+21"), (1e20, "100000000000000000000"), (1e-6, "0.000001"), (1e-7, "1e-7"),
        (-0.0, "-0"), (2.5, "2.5"), (5e-324, "5e-324"),
        (1.7976931348623157e308, "1.7976931348623157e+308"),
        ('<&>"\\é', '"\\u003c\\u0026\\u003e\\"\\\\é"'), ("\u2028\x01", '"\\u2028\\u0001"'),
        ({"b": [True, None], "a": {}}, '{"a":{},"b":[true,null]}'),
    ],
)  # fmt: skip
def test_json_as_go_writes_it(value: Any, expected: str) -> None:
    assert marshal(value) == expected


def _says_where(error: TemplateError) -> None:
    assert str(error).startswith("template: ")


_PIECES = st.sampled_from(
    [
        "{{", "}}", "{{-", "-}}", " ", "\n", "if", "else", "end", "range", "with", "define",
        "block", "template", "break", "continue", ".", ".A", "$", "$x", ":=", "=", ",", "|", "(",
        ")", '"a"', "`b`", "'c'", "1", "-2.5", "0x", "nil", "true", "and", "or", "not", "eq",
        "len", "index", "slice", "print", "printf", "json", "html", "/*", "*/", "é", "\udc80",
        '"%d"', '"%5.3q"', "\x00", "%",
    ]
)  # fmt: skip
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), 1 << 63) | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.text() | st.lists(_PIECES, max_size=30).map(" ".join) | st.lists(_PIECES).map("".join),
    st.dictionaries(st.sampled_from(["A", "B", "x"]), _JSON),
)
def test_any_text_is_a_template_or_a_template_error(text: str, data: dict[str, Any]) -> None:
    try:
        rendered = render(text, data, Budget(steps=20_000, chars=1 << 20))
    except TemplateError as error:
        _says_where(error)
    else:
        rendered.encode()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_broken_template_is_one_or_a_template_error(data: st.DataObject) -> None:
    case = data.draw(st.sampled_from(RECORDED))
    text = case["template"]
    at = data.draw(st.integers(0, len(text)))
    count = data.draw(st.integers(0, 3))
    broken = text[:at] + data.draw(_PIECES) + text[at + count :]
    try:
        render(broken, case["data"], Budget(steps=20_000, chars=1 << 20))
    except TemplateError as error:
        _says_where(error)
