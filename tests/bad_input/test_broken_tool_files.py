"""Tool files that cannot be used, beside those of tests/tools/test_tool_files.py: the file, the entry, and what would be right."""

import sys

import pytest

from arm_rl.core.errors import UserError
from tools import load_tools

ZOOM = "class_name: image_zoom_in_tool"


def schema(inside):
    return f"tools: [{{{ZOOM}, tool_schema: {{function: {inside}}}}}]"


TEXTS = {
    "a list as class": ("tools: [{class_name: [a]}]", r"tools\[0\].class_name: .* is neither one of"),
    "a relative class": ("tools: [{class_name: .x.Tool}]", r"tools\[0\].class_name: '.x.Tool' is neither"),
    "a module that raises": (
        "tools: [{class_name: raising.Tool}]",
        r"tools\[0\].class_name: .* imports \(RuntimeError: no\)",
    ),
    "a module that does not parse": ("tools: [{class_name: unparsed.Tool}]", r"tools\[0\].class_name: .*\(SyntaxError"),
    "a text as config": (f"tools: [{{{ZOOM}, config: abc}}]", r"tools\[0\].config: .*must be a mapping, not str"),
    "a text for a number": (
        f"tools: [{{{ZOOM}, config: {{min_side: abc}}}}]",
        r"tools\[0\].config: min_side: .*valid integer",
    ),
    "a negative side": (
        f"tools: [{{{ZOOM}, config: {{min_side: -3}}}}]",
        r"tools\[0\].config: min_side and max_aspect are at least 1",
    ),
    "no aspect": (
        f"tools: [{{{ZOOM}, config: {{max_aspect: .nan}}}}]",
        r"tools\[0\].config: min_side and max_aspect are at least 1",
    ),
    "no index": (
        "tools: [{class_name: doc_page_retrieval_by_query}]",
        r"tools\[0\].config: .*required keyword-only argument: 'index'",
    ),
    "an absent index": (
        "tools: [{class_name: doc_page_retrieval_by_query, config: {index: /nowhere}}]",
        r"tools\[0\].config: /nowhere: there is no such folder: build one with",
    ),
    "a text for a count": (
        "tools: [{class_name: doc_page_retrieval_by_query, config: {index: /nowhere, top_k: many}}]",
        r"tools\[0\].config: top_k: .*valid integer",
    ),
    "another engine": (
        "tools: [{class_name: web_search, config: {engine: bing}}]",
        r"tools\[0\].config: engine: one of serper, searxng",
    ),
    "no address": (
        "tools: [{class_name: web_search, config: {engine: searxng, base_url: 'ftp://x'}}]",
        r"tools\[0\].config: base_url: an address such as",
    ),
    "a text for threads": (
        "tools: [{class_name: extract_text, config: {threads: x}}]",
        r"tools\[0\].config: threads: .*valid integer",
    ),
    "no isolation": (f"tools: [{{{ZOOM}, execution: {{isolation: null}}}}]", r"tools\[0\].execution.isolation: one of"),
    "half a call": (
        f"tools: [{{{ZOOM}, execution: {{concurrency: 1.5}}}}]",
        r"tools\[0\].execution.concurrency: a whole number, not 1.5",
    ),
    "a yes as time": (
        f"tools: [{{{ZOOM}, execution: {{timeout_seconds: true}}}}]",
        r"tools\[0\].execution.timeout_seconds: a number",
    ),
    "no end": (
        f"tools: [{{{ZOOM}, execution: {{timeout_seconds: .inf}}}}]",
        r"tools\[0\].execution.timeout_seconds: at least .*, not inf",
    ),
    "a list as execution": (f"tools: [{{{ZOOM}, execution: [a]}}]", r"tools\[0\].execution: fields of isolation"),
    "a schema elsewhere": (
        schema("{name: x, parameters: {type: object, properties: {a: {$ref: 'http://x/y'}}}}"),
        r"tools\[0\].tool_schema: a \$ref leads to another document",
    ),
    "a name with a blank": (
        schema("{name: a b, parameters: {type: object, properties: {}}}"),
        r"tools\[0\].tool_schema: function.name is 'a b'; a name without blanks",
    ),
    "parameters as a list": (
        schema("{name: x, parameters: []}"),
        r"tools\[0\].tool_schema: needs function.name and function.parameters",
    ),
    "a function as a text": (schema("x"), r"tools\[0\].tool_schema: needs function.name"),
    "keys of two kinds": ("tools: [{1: 2, b: 3}]", r"tools\[0\]: unknown key 1; known: class_name"),
    "an interpolation that leads nowhere": (
        "tools: [{class_name: '${nowhere}'}]",
        "Interpolation key 'nowhere' not found",
    ),
    "a variable that is not set": (
        "tools: [{class_name: '${oc.env:NOT_SET_ANYWHERE}'}]",
        "'NOT_SET_ANYWHERE' not found",
    ),
    "the same key twice": ("tools: []\ntools: []", "not a YAML file: .*\n?.*\n?.*duplicate key"),
    "an empty server": ("tools: [{mcp: null, tools: [a]}]", r"tools\[0\].mcp: either command .* or url"),
    "a command as a text": (
        "tools: [{mcp: {command: python}, tools: [a]}]",
        r"tools\[0\].mcp.command: a list of texts is needed",
    ),
    "an absent program": (
        "tools: [{mcp: {command: [no-such-program]}, tools: [a]}]",
        r"tools\[0\].mcp: .*no-such-program: No such file",
    ),
    "two servers in one": (
        "tools: [{mcp: {command: [a], url: 'http://x'}, tools: [a]}]",
        r"tools\[0\].mcp: unknown key 'url'",
    ),
}


def test_a_byte_order_mark_and_another_encoding(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_bytes(f"tools: [{{{ZOOM}}}]".encode("utf-8-sig"))
    assert [*load_tools([str(path)])] == ["image_zoom_in_tool"]
    path.write_bytes(f"# \xe9\ntools: [{{{ZOOM}}}]".encode("latin-1"))
    with pytest.raises(UserError, match=rf"^{path}: line 1: not UTF-8 text"):
        load_tools([str(path)])


@pytest.mark.parametrize(("text", "message"), TEXTS.values(), ids=TEXTS)
def test_a_tool_file_is_refused(tmp_path, monkeypatch, text, message):
    (tmp_path / "raising.py").write_text("raise RuntimeError('no')")
    (tmp_path / "unparsed.py").write_text("class Tool")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"^{tmp_path}/t.yaml: .*{message}|^{tmp_path}/t.yaml: {message}"):
        load_tools([str(tmp_path / "t.yaml")])
