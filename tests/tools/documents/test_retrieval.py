"""Retrieval of pages: by query and by number, in any script, with names that mean harm, from threads and from two processes."""

import importlib.machinery
import io
import json
import pickle
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from arm_rl.core.errors import UserError
from arm_rl.prepare import document_builder
from arm_rl.prepare.document_builder import build_index
from tests.support.page_files import NOWHERE, ReaderByShade, write_folder, write_pdf
from tests.support.scripted import noise
from tools.base import Tool
from tools.documents.index import MARKER, DocumentIndex, DocumentIndexError, fuse_rankings
from tools.documents.retrieval import DocumentByIndexTool, DocumentByQueryTool, join_side_by_side
from tools.documents.search_terms import MAX_QUERY_TERMS, page_terms, query_terms

TEXTS = {
    1: "The quick brown fox jumps over the lazy dog",
    2: "Revenue grew by 12.5% in fiscal-year 2023; running costs fell",
    3: "深度学习模型在图像识别中的应用",
    4: "南京市长江大桥于一九六八年通车",
    5: "東京都の人口は約1400万人です",
    6: "서울특별시의 인구는 940만 명이다",
    7: "ประเทศไทยมีประชากรประมาณ",
    8: "Naïve résumé of the CAFÉ, see Ｆｉｇｕｒｅ 7 and doc_12",
    9: "Энергия и масса: E=mc²",
    10: "revenue revenue revenue",
    0: "",
}
HOSTILE_NAMES = [
    'it\'s "quoted".pdf',
    "x' OR '1'='1",
    "'; DROP TABLE texts; --",
    "报告 2023.pdf",
    "ünïcode – ©.pdf",
    "%_.pdf",
    "..hidden",
]


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Path:
    """`texts` has a page for each text, `other` shares words with it, `plain` has no text, and there are names that mean harm."""
    folder = tmp_path_factory.mktemp("documents")
    out = folder / "index"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(document_builder, "TextReader", ReaderByShade(TEXTS))
        order = [*range(1, 11), 0]
        sources = [
            write_folder(folder / "texts", order),
            write_folder(folder / "other", [2, 10]),
            write_folder(folder / "plain", [0, 0, 0]),
        ]
        for name in HOSTILE_NAMES:
            sources.append(write_folder(folder / name, [1]))
        build_index(sources, out)
    noise(64, 48).save(folder / "wide.png")
    return out


def ask(tool: Tool, **arguments):
    """The status, the text and the images of a call."""
    result = tool.call(arguments, NOWHERE)
    return result.status, result.text, result.images


def found(index: Path, query: str, filename="texts", k=3) -> list[int]:
    """Numbers of the pages, best first."""
    opened = DocumentIndex(index)
    return opened.search(opened.find(filename), query, k)


@pytest.mark.parametrize(
    ("query", "page"),
    [
        ("quick fox", 1),
        ("QUICK", 1),
        ("jumped", 1),  # another form of jumps
        ("cost", 2),
        ("2023", 2),
        ("fiscal year", 2),
        ("深度学习", 3),
        ("图像", 3),
        ("什么模型用于识别？", 3),
        ("南京", 4),  # a dictionary would cut 南京市 or 市长 here
        ("市长", 4),
        ("桥", 4),  # one character
        ("東京", 5),
        ("人口は", 5),
        ("서울", 6),  # with another ending on the page
        ("인구", 6),
        ("ประชากร", 7),
        ("naive cafe", 8),
        ("figure", 8),  # in wide letters on the page
        ("doc_12", 8),
        ("энергия", 9),
        ("mc2", 9),
    ],
)
def test_the_page_is_found(index, query, page):
    assert found(index, query)[0] == page


def test_the_better_match_comes_first(index):
    assert found(index, "revenue") == [10, 2]
    assert found(index, "revenue running costs")[0] == 2


def test_no_more_pages_than_asked_for(index):
    assert len(found(index, "the", k=1)) == 1


@pytest.mark.parametrize(
    "query",
    [
        '") OR 1=1 --',
        "fox' OR document != ''",
        "fox AND NOT quick",
        '"lazy fox"',
        "fox*",
        "text:fox",
        "fox~2 ^3 +dog -quick",
        "\x00fox",
    ],
)
def test_a_query_is_words_and_nothing_else(index, query):
    assert found(index, query, filename="plain") == []
    assert set(found(index, query)) <= {1, 2, 8}
    assert (1 in found(index, query)) == ("fox" in query)


def test_pages_are_shown_side_by_side_under_their_numbers_in_the_order_of_the_document(index):
    status, text, images = ask(DocumentByQueryTool(index=str(index), top_k=2), filename="texts", query="revenue")
    assert status == "ok"
    assert (
        text
        == "Pages of texts that match the query, from left to right: 2, 10. The best match is page 10. The document has 11 pages."
    )
    (image,) = images
    shown = image.pil()
    assert shown.size == (8 + 40 + 8 + 40 + 8, 32 + 60 + 8)
    near = pytest.approx  # of JPEG
    assert shown.getpixel((28, 62))[0] == near(2, abs=3)
    assert shown.getpixel((76, 62))[0] == near(10, abs=3)
    for left in (8, 56):  # a number is drawn above each page
        assert shown.crop((left, 0, left + 40, 32)).convert("L").getextrema()[0] < 60


def test_the_number_drawn_is_that_of_the_page():
    pages = [PILImage.new("RGB", (100, 50), "white")]
    drawn = [join_side_by_side(pages, [number]).crop((0, 0, 116, 32)).tobytes() for number in (1, 7, 7)]
    assert drawn[0] != drawn[1] == drawn[2]


def test_each_page_keeps_its_shape_and_its_place():
    pages = [PILImage.new("RGB", (30, 60), (255, 0, 0)), PILImage.new("RGB", (50, 20), (0, 0, 255))]
    strip = join_side_by_side(pages, [3, 12])
    assert strip.size == (8 + 30 + 8 + 50 + 8, 32 + 60 + 8)
    assert strip.crop((8, 32, 38, 92)).getcolors() == [(30 * 60, (255, 0, 0))]
    assert strip.crop((46, 32, 96, 52)).getcolors() == [(50 * 20, (0, 0, 255))]


def test_pages_are_shrunk_to_their_long_side(index):
    _, _, (image,) = ask(
        DocumentByQueryTool(index=str(index), top_k=2, long_side=30), filename="texts", query="revenue"
    )
    assert image.size == (8 + 20 + 8 + 20 + 8, 32 + 30 + 8)


def test_no_match_is_a_result_without_an_image(index):
    status, text, images = ask(DocumentByQueryTool(index=str(index)), filename="texts", query="zebra")
    assert (status, text, images) == ("ok", "No page of texts matches the query. The document has 11 pages.", ())


def test_a_document_without_text_says_so(index):
    status, text, images = ask(DocumentByQueryTool(index=str(index)), filename="plain", query="fox")
    assert (status, text, images) == (
        "failed",
        "Error: plain has no text that could be searched. The document has 3 pages.",
        (),
    )


@pytest.mark.parametrize("query", ["", "   ", "?! …", "\n"])
def test_a_query_without_words_is_refused(index, query):
    status, text, _ = ask(DocumentByQueryTool(index=str(index)), filename="texts", query=query)
    assert (status, text) == ("bad_arguments", "Error: query: a word to look for is needed")


def test_only_the_document_that_is_named_is_searched(index):
    assert found(index, "revenue", filename="other") == [2, 1]
    assert found(index, "fox", filename="other") == []


@pytest.mark.parametrize("tool", [DocumentByQueryTool, DocumentByIndexTool])
@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_that_mean_harm_are_names(index, tool, name):
    arguments = {"query": "fox"} if tool is DocumentByQueryTool else {"image_idx": 1}
    status, text, images = ask(tool(index=str(index)), filename=name, **arguments)
    assert (status, len(images)) == ("ok", 1)
    assert name in text
    assert len(DocumentIndex(index).documents) == 3 + len(HOSTILE_NAMES)  # nothing was dropped


@pytest.mark.parametrize("tool", [DocumentByQueryTool, DocumentByIndexTool])
@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "texts'--",
        "texts' OR name != '",
        "",
        "TEXTS",
        "%",
        "*",
        "\x00",
        "a" * 9999,
        "\ud800",
    ],
)
def test_unknown_names_list_those_that_are_known(index, tool, name):
    arguments = {"query": "fox"} if tool is DocumentByQueryTool else {"image_idx": 1}
    status, text, images = ask(tool(index=str(index)), filename=name, **arguments)
    assert (status, images) == ("bad_arguments", ())
    assert text.startswith("Error: filename: there is no document")
    assert "other, plain, texts" in text
    assert len(text) < 500


def test_at_most_20_known_names_are_listed(tmp_path):
    build_index(
        [write_folder(tmp_path / f"doc_{number:02}", [1]) for number in range(23)], tmp_path / "index", ocr="never"
    )
    _, text, _ = ask(DocumentByIndexTool(index=str(tmp_path / "index")), filename="doc", image_idx=1)
    assert text.endswith("doc_18, doc_19 and 3 more")


def test_a_name_without_its_extension_is_enough_where_it_is_unique(tmp_path):
    sources = [
        write_pdf(tmp_path / "a.pdf", [["x"]]),
        write_pdf(tmp_path / "b.pdf", [["x"]]),
        write_folder(tmp_path / "b.scan", [1, 1]),
    ]
    sources += [write_folder(tmp_path / "c", [1, 1, 1]), write_pdf(tmp_path / "c.pdf", [["x"]])]
    build_index(sources, tmp_path / "index", ocr="never")
    tool = DocumentByIndexTool(index=str(tmp_path / "index"))
    assert ask(tool, filename="a", image_idx=1)[1] == "Page 1 of 1 of a.pdf."
    assert ask(tool, filename="c", image_idx=1)[1] == "Page 1 of 3 of c."  # the whole name goes first
    assert ask(tool, filename="b", image_idx=1)[:2] == (
        "bad_arguments",
        "Error: filename: 'b' may be any of b.pdf, b.scan",
    )


def test_a_page_by_number_is_what_is_stored(index):
    stored = (index.parent / "texts" / "9.png").read_bytes()
    for long_side in (1120, 60, 0):
        status, text, (image,) = ask(
            DocumentByIndexTool(index=str(index), long_side=long_side), filename="texts", image_idx=9
        )
        assert (status, text, image.data) == ("ok", "Page 9 of 11 of texts.", stored)


def test_a_large_page_by_number_is_shrunk(index):
    _, _, (image,) = ask(DocumentByIndexTool(index=str(index), long_side=30), filename="texts", image_idx=9)
    assert image.size == (20, 30)


@pytest.mark.parametrize("number", [0, -1, 12, 10**30])
def test_a_page_that_is_not_there_tells_the_range(index, number):
    status, text, _ = ask(DocumentByIndexTool(index=str(index)), filename="texts", image_idx=number)
    assert status == "bad_arguments"
    assert text.startswith("Error: image_idx: texts has pages 1 to 11, and no page")


@pytest.mark.parametrize(
    "arguments", [{}, {"filename": "texts"}, {"filename": "texts", "image_idx": "two"}, {"filename": 3, "image_idx": 1}]
)
def test_arguments_of_another_shape_are_refused(index, arguments):
    assert ask(DocumentByIndexTool(index=str(index)), **arguments)[0] == "bad_arguments"


@pytest.mark.parametrize("tool", [DocumentByQueryTool, DocumentByIndexTool])
def test_a_tool_pickles_before_its_first_call_and_loads_nothing_until_then(index, tool):
    code = f"""
import pickle, sys
from tools.documents.retrieval import {tool.__name__}
pickle.loads(pickle.dumps({tool.__name__}(index={str(index)!r})))
print([name for name in ("lancedb", "sentence_transformers", "cv2", "torch") if name in sys.modules])
"""
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
    arguments = {"query": "fox"} if tool is DocumentByQueryTool else {"image_idx": 1}
    assert ask(pickle.loads(pickle.dumps(tool(index=str(index)))), filename="texts", **arguments)[0] == "ok"


@pytest.mark.parametrize("tool", [DocumentByQueryTool, DocumentByIndexTool])
def test_what_is_no_index_is_refused_when_the_tool_is_made(tmp_path, tool):
    with pytest.raises(
        DocumentIndexError, match=r"nowhere: there is no such folder: build one with: python -m jobs\.prepare_data"
    ):
        tool(index=str(tmp_path / "nowhere"))
    with pytest.raises(DocumentIndexError, match="not an index of documents"):
        tool(index=str(tmp_path))
    (tmp_path / MARKER).write_text("{}{")
    with pytest.raises(DocumentIndexError, match="cannot be read"):
        tool(index=str(tmp_path))
    (tmp_path / MARKER).write_text(json.dumps({"format": 99, "model": None, "dimension": 0}))
    with pytest.raises(DocumentIndexError, match="format 99"):
        tool(index=str(tmp_path))
    (tmp_path / MARKER).write_text(json.dumps({"format": 1, "model": None, "dimension": 0}))
    with pytest.raises(DocumentIndexError, match=r"documents\.lance is missing"):
        tool(index=str(tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"top_k": 0}, "top_k: at least 1"),
        ({"long_side": 0}, "long_side: at least 28"),
        ({"search": "vector"}, "needs a model"),
        ({"search": "x"}, "one of text"),
    ],
)
def test_a_wrong_configuration_is_refused(index, config, message):
    with pytest.raises(UserError, match=message):
        DocumentByQueryTool(index=str(index), **config)


def test_sixty_four_threads_get_what_one_gets(index):
    tool = DocumentByQueryTool(index=str(index), top_k=2)  # opened by whichever comes first
    queries = ["fox", "revenue", "深度学习", "南京", "서울", "zebra", "figure", "mc2"] * 16
    with ThreadPoolExecutor(64) as threads:
        results = list(threads.map(lambda query: tool.call({"filename": "texts", "query": query}, NOWHERE), queries))
    alone = {
        query: DocumentByQueryTool(index=str(index), top_k=2).call({"filename": "texts", "query": query}, NOWHERE)
        for query in set(queries)
    }
    assert all(result == alone[query] for result, query in zip(results, queries, strict=True))


def test_two_processes_read_one_index_and_a_build_disturbs_neither(tmp_path):
    out = tmp_path / "index"
    build_index([write_pdf(tmp_path / "a.pdf", [["apples"], ["pears"]])], out, ocr="never")
    here = DocumentByQueryTool(index=str(out))
    assert "left to right: 2" in ask(here, filename="a", query="pears")[1]
    code = f"""
import sys
from tests.support.page_files import NOWHERE
from tools.documents.retrieval import DocumentByQueryTool
tool = DocumentByQueryTool(index={str(out)!r})
for filename in sys.stdin:
    print(tool.call({{"filename": filename.strip(), "query": "pears"}}, NOWHERE).text, flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        said = lambda name: (print(name, file=other.stdin, flush=True), other.stdout.readline())[1]  # noqa: E731
        assert "left to right: 2" in said("a")
        build_index(
            [write_pdf(tmp_path / "b.pdf", [["pears"]]), write_pdf(tmp_path / "a.pdf", [["plums"]])], out, ocr="never"
        )
        assert "left to right: 2" in said("a")
        assert "no document 'b'" in said("b")
        other.stdin.close()
    assert "left to right: 2" in ask(here, filename="a", query="pears")[1]
    assert ask(DocumentByQueryTool(index=str(out)), filename="a", query="pears")[1].startswith("No page of a.pdf")


# Search by meaning. The package is optional and no model can be had, so that a stand-in takes its place: it knows three meanings.

MEANINGS = ({"fox", "dog", "animal"}, {"revenue", "costs", "money"}, {"bridge", "river"})


class SentenceTransformer:
    """A vector has a part for each meaning."""

    def __init__(self, name: str) -> None:
        self.name = name

    def encode(self, texts, *, normalize_embeddings, show_progress_bar):
        """[number of texts, 4]"""
        words = [set(text.lower().split()) for text in texts]
        vectors = np.array(
            [[*(len(known & meaning) for meaning in MEANINGS), 0.1] for known in words], dtype=np.float64
        )
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def sentence_transformers(monkeypatch) -> None:
    module = types.ModuleType("sentence_transformers")
    module.__spec__ = importlib.machinery.ModuleSpec("sentence_transformers", None)
    module.SentenceTransformer = SentenceTransformer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)


@pytest.fixture
def meanings(tmp_path, sentence_transformers) -> Path:
    pages = [["the fox and the dog"], ["revenue and costs"], ["a bridge over a river"], [""]]
    build_index([write_pdf(tmp_path / "a.pdf", pages)], tmp_path / "meanings", ocr="never", model="small-model")
    return tmp_path / "meanings"


@pytest.mark.parametrize(
    ("search", "query", "best"),
    [
        ("vector", "animal", 1),  # a word that is on no page
        ("vector", "money", 2),
        ("text", "fox", 1),
        ("hybrid", "money", 2),
        ("hybrid", "bridge", 3),
        (None, "animal", 1),
    ],
)
def test_pages_are_found_by_meaning(meanings, search, query, best):
    tool = DocumentByQueryTool(index=str(meanings), model="small-model", search=search, top_k=1)
    assert f"left to right: {best}." in ask(tool, filename="a", query=query)[1]


def test_a_word_that_is_nowhere_finds_nothing_by_words_and_no_empty_page_by_meaning(meanings):
    assert ask(DocumentByQueryTool(index=str(meanings)), filename="a", query="animal")[1].startswith("No page")
    ranked = DocumentByQueryTool(index=str(meanings), model="small-model", search="vector", top_k=9)
    assert "left to right: 1, 2, 3." in ask(ranked, filename="a", query="animal")[1]


def test_another_model_than_the_index_is_from_is_refused(meanings, index):
    with pytest.raises(DocumentIndexError, match="built with 'small-model', so that model 'other' cannot search it"):
        DocumentByQueryTool(index=str(meanings), model="other")
    with pytest.raises(DocumentIndexError, match="built without one"):
        DocumentByQueryTool(index=str(index), model="small-model")
    with pytest.raises(DocumentIndexError, match="built with the model 'small-model', now None"):
        build_index([meanings.parent / "a.pdf"], meanings, ocr="never")


def test_a_missing_package_is_said_when_the_tool_is_made(index, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package sentence-transformers, which is not installed"):
        DocumentByQueryTool(index=str(index), model="small-model")
    assert ask(DocumentByQueryTool(index=str(index)), filename="texts", query="fox")[0] == "ok"


def test_rankings_are_fused():
    assert fuse_rankings([[1, 2, 3], [2, 3, 4]]) == [2, 3, 1, 4]
    assert fuse_rankings([[5], []]) == [5]
    assert fuse_rankings([[7], [4]]) == [4, 7]  # equals in order of pages


def test_terms():
    assert page_terms("Ab c-d, 长江x") == "ab c d 长 江 长江 x"
    assert query_terms("Ab ab 长江 桥") == "ab 长江 桥"
    assert len(query_terms(" ".join(map(str, range(9999)))).split()) == MAX_QUERY_TERMS
    assert len(query_terms("".join(map(chr, range(0x4E00, 0x5E00)))).split()) == MAX_QUERY_TERMS


def test_a_strip_is_read_back_as_an_image(index):
    _, _, (image,) = ask(DocumentByQueryTool(index=str(index)), filename="texts", query="fox")
    assert PILImage.open(io.BytesIO(image.data)).size == image.size
