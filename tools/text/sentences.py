"""What counts as a paragraph, a sentence and a word, in plain text and Markdown of any language."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator

from sentencex import segment

WINDOW = 4096  # characters given to the segmenter at a time: it takes time that grows with the square of some texts


def _combining_marks() -> str:
    r"""Return the combining marks of the basic plane as the inside of a character class: `\w` lacks them."""
    ranges: list[list[int]] = []
    for code in range(0x300, 0x10000):
        if unicodedata.category(chr(code))[0] != "M":
            continue
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)


# Characters that each are a word: Han, and the Japanese syllables.
CJK = r"\u3005-\u3007\u3041-\u3096\u30a1-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
# Any other character of a word: a letter, a digit or a combining mark.
LETTER = rf"(?:[^\W_{CJK}]|[{_combining_marks()}])"

_WORD = re.compile(
    rf"[{CJK}]|https?://[!-~]+"  # an address is one word
    rf"|{LETTER}+(?:(?:[-‐‑'’._@&+]|(?<=\d)[,:/](?=\d)){LETTER}+)*"
)
_SOMETHING = re.compile(r"[^\W_]")

_QUOTED = re.compile(r"\s*(?:>\s?)+")
_MARKER = re.compile(
    r"\s*(?:#{1,6}(?=\s)|[-*+•‣◦·–—](?=\s)|[（(](?:\d{1,3}|[A-Za-z]|[一二三四五六七八九十]+)[)）]|\d{1,3}[.)](?=\s)|[A-Za-z][.)](?=\s)"
    r"|(?:\d{1,3}|[一二三四五六七八九十]{1,3})[、．]|[①-⑳])\s*"
)
_ALONE = re.compile(r"\s*(?:#{1,6}\s|\|)")
_RULE = re.compile(r"[\s=*_|:+#~>-]*")
_FENCE = re.compile(r"\s*(?:```|~~~)")
_BOLD_LINE = re.compile(r"\s*(?:\*\*[^*]+\*\*|__[^_]+__)\s*[:：]?\s*")
_LINK = re.compile(r"!?\[([^\[\]]*)\]\([^()\s]*(?:\s\"[^\"()]*\")?\)")
_HTML = re.compile(r"</?(?:br|b|i|u|em|strong|sub|sup|mark|kbd|center)\s?/?>", re.IGNORECASE)
_EMPHASIS = re.compile(
    r"(?=[`~*_])(?:`+|~~|(?<!\d)\*{2,3}|\*{2,3}(?!\d)|(?<![\w*])\*(?=[^\s*])|(?<=[^\s*])\*(?![\w*])"
    r"|(?<!\w)_+(?=[^\W_])|(?<=[^\W_])_+(?!\w)|(?<=[^\w\s])_+(?=\s|$))"
)


def paragraphs(text: str) -> list[str]:
    """The paragraphs, as written: what blank lines separate.

    A single line break ends no paragraph, so a list without blank lines is one and a heading with a blank line after it is one of its
    own. Blank lines inside a fenced block of code separate nothing. What has neither letter nor digit (a rule) is none.
    """
    lines = text.splitlines()
    fences = [number for number, line in enumerate(lines) if _FENCE.match(line)]
    closed = dict(zip(fences[::2], fences[1::2], strict=False))  # the last may never be closed: then it opens nothing
    found: list[list[str]] = [[]]
    end = -1  # line that closes the block of code
    for number, line in enumerate(lines):
        end = closed.get(number, end)
        if line.strip() or number < end:
            found[-1].append(line)
        else:
            found.append([])
    return [paragraph for run in found if _SOMETHING.search(paragraph := "\n".join(run))]


def sentences(text: str) -> list[str]:
    """The sentences, in one line each and without Markdown's emphasis.

    They end where `sentencex` says, by the punctuation of all scripts and the abbreviations of the text's language; and at every blank
    line, heading, bold line, list item, rule, row of a table and line of code. Another line break is a space. The number or bullet of an
    item belongs to its first sentence. Quoted speech belongs to the sentence that goes on after it. What has neither letter nor digit
    belongs to its neighbour.
    """
    return [sentence for paragraph in sentences_by_paragraph(text) for sentence in paragraph]


def sentences_by_paragraph(text: str) -> list[list[str]]:
    """The sentences of each paragraph."""
    language = _detect_language(text)
    return [
        [sentence for block in _blocks(paragraph) for sentence in _split_sentences(block, language)]
        for paragraph in paragraphs(text)
    ]


def num_words(text: str) -> int:
    """How many words: a run of letters, digits and their marks; each Han character and kana is one of its own.

    Hyphens, apostrophes, and the points and separators inside numbers, abbreviations and names join: "well-known", "don't", "1,000.5",
    "e.g.", "12:30", "snake_case" are one word each, as is a web address. "and/or" and "this—that" are two. Symbols, Markdown's marks and
    the numbers of list items are none. Scripts written without spaces other than these (Thai) count a run as one.
    """
    return len(_WORD.findall(strip_markdown(text)))


def strip_markdown(text: str) -> str:
    """Return the text without Markdown: one line for each heading, item, table row and run of other lines."""
    blocks = (block for paragraph in paragraphs(text) for block in _blocks(paragraph))
    return "\n".join(strip_marker(block) for block in blocks)


def strip_marker(line: str) -> str:
    """Return the line without its heading, item or quotation marker."""
    if quoted := _QUOTED.match(line):
        line = line[quoted.end() :]
    if marker := _MARKER.match(line):
        line = line[marker.end() :]
    return line.strip()


def _blocks(paragraph: str) -> Iterator[str]:
    """The headings, items, rows and runs of other lines, each in one line without emphasis."""
    run: list[str] = []
    code = False
    for line in paragraph.split("\n"):
        if quoted := _QUOTED.match(line):
            line = line[quoted.end() :]
        if _FENCE.match(line):
            code = not code
        rule = _FENCE.match(line) or _RULE.fullmatch(line)
        alone = code or _ALONE.match(line) or _BOLD_LINE.fullmatch(line)
        if run and (rule or alone or _MARKER.match(line)):
            yield _join_without_marks(run)
            run = []
        if not rule:
            run.append(line)
        if run and alone:
            yield _join_without_marks(run)
            run = []
    if run:
        yield _join_without_marks(run)


def _join_without_marks(lines: list[str]) -> str:
    """Join lines to one line without inline marks."""
    line = " ".join(line.strip() for line in lines)
    if line.startswith("|"):
        line = line.replace("|", " ")
    line = _HTML.sub(" ", _LINK.sub(r"\1", line)) if "[" in line or "<" in line else line
    marker = _MARKER.match(line)  # a bullet is no emphasis
    start = marker.end() if marker else 0
    return (line[:start] + strip_emphasis(line[start:])).strip()


def strip_emphasis(line: str) -> str:
    """Return a line, or a part of one, without marks of bold, italic, struck-through and code."""
    return _EMPHASIS.sub("", line)


# Languages whose abbreviations the segmenter knows: by their letters, and where these are Latin by words that the others hardly have.
_SCRIPTS = {
    "ru": re.compile(r"[\u0400-\u04ff]"),
    "el": re.compile(r"[\u0370-\u03ff]"),
    "ar": re.compile(r"[\u0600-\u06ff]"),
    "hi": re.compile(r"[\u0900-\u097f]"),
    "zh": re.compile(rf"[{CJK}]"),
}
_FUNCTION_WORDS = {
    "en": "the and of is in it that was to for",
    "de": "der und das ist nicht ein eine mit sich auf",
    "nl": "het een niet van zijn voor ook dat deze wordt",
    "it": "il che non gli della sono nel è più questo",
    "pt": "não uma um com dos ao é também mais são",
    "es": "el los las una y del por con más esta",
    "pl": "jest się nie w na z że są oraz przez",
}
_LANGUAGE_OF = {word: language for language, words in _FUNCTION_WORDS.items() for word in words.split()}
_SAMPLE = 1000  # characters that tell a language


def _detect_language(text: str) -> str:
    """Return the language whose abbreviations apply; "en" if no other known language fits."""
    sample = text[:_SAMPLE]
    if not sample.isascii():
        letters = len(_SOMETHING.findall(sample))
        for language, script in _SCRIPTS.items():
            if 3 * len(script.findall(sample)) > letters:
                return language
    votes = Counter(map(_LANGUAGE_OF.get, sample.lower().split()))
    best = max(_FUNCTION_WORDS, key=lambda language: votes[language])  # English comes first
    return best if votes[best] > 1 else "en"


# What the segmenter leaves at the beginning of the next part.
_CLOSERS = re.compile(r"[)\]}）】］｝”’」』»›》〉]+(?=[\s,.;:，、；：]|$)")
_ASIDE = re.compile(r"\s*[(\[（【][^()\[\]（）【】]*[.!?…。！？][)\]）】]\s*(?=[^\W_])")
_NUMBER = re.compile(r"\s*[(（]?\d{1,3}[.)）]\s*")
_LETTER = re.compile(LETTER)
_NEVER_LAST = re.compile(r"(?<![^\W_])(?:mrs?|ms|dr|prof|e\.g|i\.e|vs|cf|approx|eq)\.\s*\Z", re.IGNORECASE)
_POINT = re.compile(r"[^\W_]\.\Z")
_SHORT_WORD = re.compile(r"(?<![^\W_])(?:[^\W\d_]\.)*[^\W\d_]{1,4}\.\s*\Z")  # "temp.", "т.е."
_ANY_LETTER = re.compile(r"[^\W\d_]")
# which hardly follow the point inside a name: "Rome.The streets"
_OPENING_WORD = re.compile(
    r"(?:an?d?|as|at|but|he|her|his|if?|in|its?|my|no|on|our|she|so|th(?:at|eir|en?|ere|ese|ey|is|ose)|we|when|you),?",
    re.IGNORECASE,
)
_AFTER_SPEECH = re.compile(rf"[{CJK},，、]")


def _split_sentences(block: str, language: str) -> Iterator[str]:
    """Yield the sentences of a block, each with at least a letter or a digit."""
    marker = _MARKER.match(block)
    body = marker.end() if marker and _SOMETHING.search(block, marker.end()) else 0
    sentence = [block[:body]]
    complete = False  # has a letter or a digit beside a number in front: another sentence may follow
    for part in _segments(block[body:], language):
        if complete and not _continues_sentence(sentence, part):
            yield "".join(sentence).strip()
            sentence, complete = [], False
        while not complete and (aside := _ASIDE.match(part)) and not part[aside.end()].islower():
            yield ("".join(sentence) + aside.group()).strip()  # a whole sentence in brackets
            sentence, part = [], part[aside.end() :]
        sentence.append(part)
        complete = complete or bool(_SOMETHING.search(part) and not _NUMBER.fullmatch(part))
    if complete or _SOMETHING.search("".join(sentence)):
        yield "".join(sentence).strip()


def _continues_sentence(sentence: list[str], part: str) -> bool:
    """Return whether a part of the segmenter belongs to the sentence of the parts before it."""
    before = sentence[-1]
    if not _SOMETHING.search(part) or _NEVER_LAST.search(before[-10:]):
        return True
    if before[-1] in "”’」』":  # “真的吗？”他说。
        return bool(_AFTER_SPEECH.match(part))
    if _POINT.search(before[-2:]) and _LETTER.match(part):  # "ASP.NET"
        return not _is_space_missing(before, part)
    # an abbreviation, for a writer whose sentences begin with capitals
    return bool(_SHORT_WORD.search(before)) and _begins_small(part) and not _begins_small("".join(sentence[:2]))


def _begins_small(text: str) -> bool:
    """Return whether the first letter is a small one, and not that of a name such as "iPhone"."""
    first = _ANY_LETTER.search(text)
    return first is not None and first[0].islower() and not text[first.end() : first.end() + 1].isupper()


def _is_space_missing(before: str, part: str) -> bool:
    """Return whether two sentences meet without a blank, as in "The cat sat.The dog ran."."""
    last, first = before[:-1].split()[-1], part.split()[0]
    if not last.isalpha() or not first.rstrip(",'’").istitle() or len(part.split()) < 2:
        return False  # a name with a point, or an address
    return (len(last) > 1 and last.islower()) or bool(_OPENING_WORD.fullmatch(first))


def _segments(block: str, language: str) -> Iterator[str]:
    """The segmenter's parts, which joined are the block. The work is linear in the block's length."""
    # it breaks on lone surrogates and on wide white space
    block = " ".join(block.encode("utf-8", "replace").decode().split())
    block = block.replace("… ", "... ")  # which it knows as an end, where a capital follows
    start = 0
    unfinished: list[str] = []  # the windows that one part fills
    while start < len(block):
        parts = _parts(block[start : start + WINDOW], language)
        open_ended = start + WINDOW < len(block)
        if open_ended and len(parts) > 1:
            parts.pop()  # it is read again, from its beginning
            open_ended = False
        start += sum(map(len, parts))
        if open_ended:
            unfinished += parts
            continue
        parts[0] = "".join((*unfinished, parts[0]))
        unfinished = []
        for part in parts:
            if closers := _CLOSERS.match(part):
                yield closers.group()
                part = part[closers.end() :]
            if part:
                yield part


def _parts(window: str, language: str) -> list[str]:
    try:
        return segment(language, window)
    except BaseException as error:
        # which no module exports, and which is no Exception: it would end the process
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(f"sentencex {error}") from error
