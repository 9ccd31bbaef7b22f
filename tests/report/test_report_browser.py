"""The report in a real browser: filters, search, tokens, siblings, the keyboard, screens and colours; from a file and from a server."""

import dataclasses
import json
import threading
from contextlib import contextmanager

import pytest

from arm_rl.core.types import ImageInfo, ToolCall
from arm_rl.report import server
from arm_rl.report.static_report import write_report
from tests.report.test_report import HOSTILE, looked_at, write_log
from tests.report.test_report_tokens import TOKENIZER
from tests.support.chromium import CHROMIUM, chromium
from tests.support.trajectories import looked, make_sample, make_scored, make_turn, zoom_event

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

SHOWN = "[...document.querySelectorAll('#rows a')].map(a => [a.querySelector('.sample').textContent, a.querySelector('.mark').ariaLabel])"
COUNT = "document.getElementById('count').textContent"
CARDS = "[...document.querySelectorAll('#shown article')].map(one => one.textContent)"
SETTLED = "document.getElementById('shown').ariaBusy === 'false'"


def spoken(text: str, sample: str, logprobs: tuple[float, ...] | None = None, **changes):
    """A trajectory of one turn whose tokens are the text's bytes."""
    ids = tuple(TOKENIZER.encode(text).ids)
    turn = make_turn(text, token_ids=ids, logprobs=logprobs or (-0.5,) * len(ids))
    return make_scored(turn, sample_id=sample, **changes), {}


def write_browsed_run(folder):
    """A step of training with a group of four, evaluations of two checkpoints, one hostile trajectory, one without its image."""
    lines = [{"step": step, "stage": stage, "reward/mean": 0.5} for stage in ("sft", "stage2") for step in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    samples = {name: make_sample(name) for name in ("lost", "won", "same", "group", "bare")}
    for stage, right in (("sft", {"lost", "same"}), ("stage2", {"won", "same"})):
        write_log(
            folder,
            f"{stage}-evaluation",
            [looked_at(name, name in right) for name in ("lost", "won", "same")],
            samples=samples,
        )
    group = [
        spoken("no 你", "group", reward=0.0, group_id="g", index=0),
        spoken("yes!", "group", (-0.01, -3.0, -0.01, -0.01), reward=1.0, group_id="g", index=1, correct=True),
    ]
    bare, _ = looked_at("bare", reward=0.25)
    gone = tuple(dataclasses.replace(info, key=f"{info.name} is gone") for info in bare.trajectory.images)
    without = dataclasses.replace(bare, trajectory=dataclasses.replace(bare.trajectory, images=gone))
    write_log(folder, "stage2", [*group, (without, {})], step=1, samples=samples)
    call = ToolCall(
        name=HOSTILE, arguments={"image": HOSTILE, "bbox_2d": [0, 0, 1, 1], HOSTILE: HOSTILE}, error=HOSTILE
    )
    event = dataclasses.replace(zoom_event(status="failed"), call=call, text=HOSTILE, image_names=(HOSTILE,))
    hostile = make_scored(
        make_turn(
            f"{HOSTILE}<think>{HOSTILE}</think>{HOSTILE}",
            event,
            token_ids=tuple(TOKENIZER.encode(HOSTILE).ids),
            logprobs=(),
        ),
        sample_id=HOSTILE,
        track=HOSTILE,
        images=(ImageInfo(name=HOSTILE, key=HOSTILE),),
        error=HOSTILE,
        parts={HOSTILE: 1.0},
    )
    write_log(
        folder,
        "stage2",
        [(hostile, {})],
        step=2,
        samples={HOSTILE: make_sample(HOSTILE, label=HOSTILE, texts=(HOSTILE,))},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    write_browsed_run(run)
    return run


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@contextmanager
def served(folder):
    with server.make_server(server.Report(folder, TOKENIZER), 0) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}/"
        serving.shutdown()
        thread.join()


@pytest.fixture(scope="module", params=["file", "server"])
def address(request, folder):
    """The page of the run, as a file and from the server: both do the same."""
    if request.param == "file":
        yield write_report(folder, tokenizer=TOKENIZER).as_uri()
    else:
        with served(folder) as url:
            yield url


@pytest.fixture
def page(browser, address):
    """The page, newly opened on a large screen; nothing may go wrong in it."""
    browser.errors.clear()
    browser.look(1400)
    browser.open(address)
    yield browser
    assert not browser.errors


def choose(page, **values) -> None:
    """Sets filters and waits until they have filtered."""
    for name, value in values.items():
        page.run(f"form.elements[{json.dumps(name)}].value = {json.dumps(value)}")
        page.run("form.elements.stage.dispatchEvent(new Event('input', { bubbles: true }))")
    page.run("new Promise((done) => setTimeout(done, 10)).then(() => filter())")


def shown(page) -> list[tuple[str, str]]:
    return [tuple(one) for one in page.run(SHOWN)]


def test_all_are_listed_the_newest_first(page):
    assert page.run(COUNT) == "10 trajectories"
    names = [name for name, _ in shown(page)]
    assert names == ["lost", "won", "same", HOSTILE, "group", "group", "bare", "lost", "won", "same"]


def test_filters(page):
    for values, found in (
        ({"stage": "stage2", "step": "1", "verdict": "right"}, [("group", "right"), ("bare", "right")]),
        ({"step": "", "verdict": "", "from": "0.2", "to": "0.3"}, [("bare", "right")]),
        ({"from": "", "to": "", "tool": "-"}, [("group", "wrong"), ("group", "right")]),
        ({"tool": "image_zoom_in_tool"}, [("bare", "right")]),
        ({"tool": "", "status": "failed"}, [(HOSTILE, "wrong")]),
        (
            {"status": "", "track": "zoom", "sort": "lowest"},
            [("group", "wrong"), ("bare", "right"), ("group", "right")],
        ),
    ):
        choose(page, **values)
        assert shown(page) == found
    page.run("form.reset()")
    page.wait(f"{COUNT} === '10 trajectories'")


def test_what_changed_between_two_checkpoints(page):
    checkpoints = {"before": "sft-evaluation-000003", "after": "stage2-evaluation-000003"}
    for how, found in (("any", ["lost", "won"]), ("better", ["won"]), ("worse", ["lost"])):
        choose(page, changed=how)
        choose(page, **checkpoints)
        assert [name for name, _ in shown(page)] == found
    assert page.run("document.querySelector('.change').textContent") == "right → wrong"
    page.press("e")
    page.wait(f"{SETTLED} && {CARDS}.length === 2")
    assert ["✓ right" in card for card in page.run(CARDS)] == [True, False]


def test_search_finds_what_was_written_as_text(page):
    for text, count in (
        ("TOO SMALL", 7),
        ("no 你", 1),
        ("onerror=alert", 1),
        ("<img src=x", 1),
        ("&lt;", 0),
        ("article", 0),
        ("won", 2),
    ):
        choose(page, text=text)
        assert len(shown(page)) == count, text


def test_a_trajectory_is_shown_with_its_images_and_boxes(page):
    page.press("j")
    page.press("k")
    page.wait(f"{SETTLED} && document.querySelectorAll('#shown img[src]').length === 3")
    facts = page.run(
        "[...document.querySelectorAll('#shown figure')].map(one => [one.textContent,"
        " [...one.querySelectorAll('.box')].map(box => box.className), one.querySelector('img').naturalWidth])"
    )
    assert facts == [
        ["original_image · 64 × 64", ["box target"], 64],
        ["1original_image · 64 × 64", ["box zoomed"], 64],
        ["observation_1 · 32 × 32", [], 32],
    ]
    choose(page, text="bare")
    page.wait(f"{SETTLED} && document.querySelectorAll('#shown .note').length > 0")
    assert "original_image: the image was not kept" in page.run(CARDS)[0]


def test_tokens_are_coloured(page):
    choose(page, stage="stage2", step="1", verdict="right", tool="-")
    spans = "[...document.querySelectorAll('#shown details.turn .pieces span')]"
    spans += ".map(one => [one.textContent, one.style.backgroundColor, one.title])"
    page.press("2")
    page.wait(f"{SETTLED} && document.querySelector('#shown .pieces')")
    tokens = page.run(spans)
    assert [text for text, _, _ in tokens] == ["y", "e", "s", "!"]
    shares = [float(colour.split("%")[0].split(" ")[-1]) for _, colour, _ in tokens]
    assert shares == [0.7, 71.3, 0.7, 0.7]
    assert tokens[1][2].startswith("log-probability -3.000 · probability 0.0498 · advantage 0.71")
    page.press("3")
    page.wait(f"{SETTLED} && {spans}[0][1].includes('masked')")
    assert {colour for _, colour, _ in page.run(spans)} == {"var(--masked)"}
    assert page.run(
        "[...document.querySelectorAll('#shown details.prompt .pieces span')].every(one => one.style.backgroundColor === '')"
    )
    page.press("4")
    page.wait(f"{SETTLED} && {spans}[0][1].includes('better')")
    page.press("g")
    page.wait(f"{SETTLED} && {CARDS}.length === 2")
    assert ["1 of 2, reward 0 (−0.71)" in card or "2 of 2, reward 1 (+0.71)" in card for card in page.run(CARDS)] == [
        True,
        True,
    ]
    assert page.run(f"{spans}.slice(0, 4).map(one => [one[0], one[1].includes('worse'), one[2].split(' · ')[0]])")[
        3
    ] == [
        "你",
        True,
        "3 tokens",
    ]
    page.press("1")
    page.wait(f"{SETTLED} && document.querySelector('#shown .tokens').hidden")


def test_the_keyboard_does_all(page):
    current = "document.activeElement.querySelector?.('.sample')?.textContent"
    for key, name in (("j", "won"), ("j", "same"), ("ArrowDown", HOSTILE), ("ArrowUp", "same"), ("k", "won")):
        page.press(key)
        page.wait(f"{SETTLED} && {current} === {name!r}")
        assert page.run("document.getElementById('title').textContent") == name
    page.press("/")
    assert page.run("document.activeElement.name") == "text"
    page.press("j")  # is typed now
    assert page.run("form.text.value") == "j"
    page.press("Escape")
    page.press("?")
    assert page.run("document.getElementById('help').open")
    page.run("document.getElementById('help').close()")


def test_the_address_keeps_what_is_open(page, address):
    page.open(f"{address}#stage=stage2&open=stage2-000001%2F1&view=mask&beside=group")
    assert page.run("form.stage.value") == "stage2"
    page.wait(f"{SETTLED} && {CARDS}.length === 2")
    assert page.run("document.getElementById('title').textContent") == "group"
    assert page.run("document.querySelector('#rows a[aria-current]').dataset.place") == "2"
    assert page.run("document.querySelectorAll('#shown .tokens:not([hidden])').length") == 2


def test_what_a_model_writes_does_nothing(page):
    page.run("window.alert = () => { document.title = 'hacked'; }")
    choose(page, stage="stage2", step="2")
    page.wait(SETTLED)
    assert page.run("document.getElementById('title').textContent") == HOSTILE
    for key in "1234ge":
        page.press(key)
        page.wait(SETTLED)
        assert (
            page.run("document.querySelectorAll('#browser script, #browser img[onerror], #browser [src=x]').length")
            == 0
        )
    assert page.run("document.title") != "hacked"
    assert not page.errors
    # even if it came into the page
    page.run("document.getElementById('shown').innerHTML = '<img src=x onerror=alert(1)>'")
    page.wait("document.querySelector('#shown img').complete")
    assert page.run("document.title") != "hacked"
    page.errors.clear()  # the policy's complaints


@pytest.mark.parametrize("dark", [False, True])
def test_a_narrow_screen_shows_the_list_or_what_is_open(page, address, dark):
    page.look(390, 844, dark=dark)
    page.open(address)
    visible = "['rows', 'detail', 'filters'].map(id => document.getElementById(id).checkVisibility())"
    assert page.run(visible) == [True, False, True]
    page.run("document.querySelectorAll('#rows a')[1].click()")
    page.wait(f"{SETTLED} && document.querySelectorAll('#shown img[src]').length === 3")
    assert page.run(visible) == [False, True, False]
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    page.press("g")
    page.wait(SETTLED)
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    page.run("document.getElementById('back').click()")
    assert page.run(visible) == [True, False, True]
    assert page.run("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read(page, dark):
    """Contrast of text and of the controls' edges: WCAG 2.1 AA, 4.5 and 3."""
    page.look(1400, dark=dark)
    ratio = """(([one, two]) => { const light = (name) => { const probe = document.createElement('i'); probe.style.color = `var(${name})`;
      document.body.append(probe); const [r, g, b] = getComputedStyle(probe).color.match(/[\\d.]+/g).map(Number); probe.remove();
      const linear = (c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
      return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b); };
      const [a, b] = [light(one), light(two)]; return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); })"""
    for text in ("--ink", "--faint", "--accent", "--right", "--wrong"):
        for ground in ("--page", "--card"):
            assert page.run(f"{ratio}(['{text}', '{ground}'])") >= 4.5, (text, ground)
    assert page.run(f"{ratio}(['--on-accent', '--accent'])") >= 4.5
    assert page.run(f"{ratio}(['--edge', '--card'])") >= 3


def test_every_control_has_a_name(page):
    nameless = "[...document.querySelectorAll('select, input, button')].filter(one => !one.labels?.length && !one.textContent.trim())"
    assert page.run(f"{nameless}.map(one => one.outerHTML)") == []


def test_a_file_says_what_it_does_not_hold(browser, tmp_path):
    samples = {f"s{number}": make_sample(f"s{number}") for number in range(40)}
    write_log(tmp_path, "stage2", [looked_at(name, group_id=name) for name in samples], samples=samples)
    browser.look(1400)
    browser.errors.clear()
    browser.open(write_report(tmp_path, max_mb=0.03, tokenizer=TOKENIZER).as_uri())
    held = len(browser.run(SHOWN))
    assert 0 < held < 40
    assert browser.run("document.getElementById('total').textContent") == f"{held} of 40 in this file"
    assert browser.run("document.getElementById('rest').checkVisibility()")
    browser.run("form.elements.held.click()")
    browser.wait(f"{COUNT} === '40 trajectories'")
    browser.run("document.querySelector('#rows a.absent').click()")
    browser.wait(f"{SETTLED} && {CARDS}[0]?.includes('is not in this file')")
    assert not browser.errors


def test_without_a_tokenizer_the_page_says_so(browser, tmp_path):
    write_log(tmp_path, "stage2", [looked()])
    browser.look(1400)
    browser.open(write_report(tmp_path).as_uri() + "#view=logprob")
    browser.wait(f"{SETTLED} && {CARDS}[0]?.includes('tokenizer was not found')")


def test_of_very_many_checkpoints_some_are_compared(browser, tmp_path):
    for step in range(1, 101):
        write_log(tmp_path, "stage2", [looked()], step=step)
    browser.look(1400)
    browser.open(write_report(tmp_path).as_uri() + "#open=stage2-000038%2F0&beside=elsewhere")
    browser.wait(f"{SETTLED} && {CARDS}.length > 1")
    steps = [int(card.split("step ")[1].split("✓")[0]) for card in browser.run(CARDS)]
    assert {1, 38, 100} <= set(steps)
    assert 20 <= len(steps) <= 25
    assert steps == sorted(steps)
