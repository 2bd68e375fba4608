"""The page over a dataset: what the server gives, to whom, and the page in a real browser."""

import http.client
import io
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from jobs.datasets.choices import read_keys
from jobs.view.data import PAGE, Query, View
from jobs.view.server import Server
from jobs.view_command import default_list
from schemas.errors import ConfigError, InputError
from schemas.example import Phrase, Source
from schemas.rejects import Reason, Reject
from schemas.samples import FORMATS
from tests.browser import CHROMIUM, start_browser
from tests.datasets import example, jpeg, write_dataset
from tests.jobs.conftest import Run
from tests.objects import TWO, example_of_objects
from tests.training.pairs import pair

TWICE = (("a dog", (4, 6, 20, 16)), ("a cat", (30, 6, 20, 16)))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 samples, every third with two subjects; a reject whose picture is there, one whose is not, one of a text."""
    folder = tmp_path_factory.mktemp("view")
    (folder / "there.jpg").write_bytes(jpeg(900, 600))
    (folder / "secret.txt").write_text("hidden words")
    records: list[Any] = [example(f"{n:02d}", TWICE if n % 3 == 0 else TWICE[:1], size=(64 + n, 48)) for n in range(30)]
    rejects = [
        Reject(name, str(folder / name), "matches", Reason.NO_MATCH, f"nothing like it in {name}")
        for name in ("there.jpg", "gone.jpg", "secret.txt")
    ]
    write_dataset(folder / "data", [[*records, *rejects]])
    return folder / "data"


@pytest.fixture
def server(data: Path, tmp_path: Path) -> Iterator[Server]:
    with Server(View(str(data), tmp_path / "excluded.txt")) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(
    server: Server, path: str, body: object = None, *, token: str | None = None, **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    content = None if body is None else json.dumps(body)
    given = {name.title(): value for name, value in headers.items()}
    place = f"/{server.token if token is None else token}/{path}"
    connection.request("GET" if body is None else "POST", place, content, given)
    answer = connection.getresponse()
    found = answer.status, answer.read(), dict(answer.headers)
    connection.close()
    return found


def rows(server: Server, **fields: Any) -> dict[str, Any]:  # noqa: ANN401
    status, content, _ = ask(server, f"samples?{urlencode(fields)}")
    assert status == 200, content
    return dict(json.loads(content))


def keys(page: dict[str, Any]) -> list[str]:
    return [sample["key"] for sample in page["samples"]]


def test_a_page_holds_some_rows_and_says_how_many_there_are(server: Server) -> None:
    first, second = rows(server), rows(server, page=1)
    assert (first["total"], first["pages"], len(keys(first)), len(keys(second))) == (30, 2, PAGE, 30 - PAGE)
    assert keys(first)[0] == "00"
    assert keys(rows(server, sort="-width"))[:2] == ["29", "28"]
    assert keys(rows(server, page=99)) == []


def test_search_class_score_and_expression_are_one_expression(server: Server) -> None:
    page = rows(
        server, text="CAT dog", column="labels", value="cat", score="scores", threshold=0.55, where="width > 70"
    )
    assert page["where"] == (
        '("cat" in lower(caption) or "cat" in lower(key)) and ("dog" in lower(caption) or "dog" in lower(key)) '
        'and "cat" in labels and max(scores) >= 0.55 and (width > 70)'
    )
    assert keys(page) == [f"{n:02d}" for n in range(9, 30, 3)]
    assert keys(rows(server, text='07"')) == []
    assert keys(rows(server, text="07")) == ["07"]
    assert rows(server, value="sky", column="labels")["total"] == 0


def test_a_curve_says_what_each_threshold_leaves(server: Server) -> None:
    curve = json.loads(ask(server, "curve?column=scores")[1])
    assert len(curve) == 101
    assert curve[0] == [0.5, 30, 40]
    assert curve[-1] == [0.6, 10, 10]
    assert all(rows(server, score="scores", threshold=t)["total"] == samples for t, samples, _ in curve[::20])
    values = json.loads(ask(server, "values?column=labels")[1])
    assert values == [["dog", 30], ["cat", 10]]


def test_excluded_samples_are_saved_as_the_list_that_filter_takes(server: Server, data: Path) -> None:
    view = server.view
    for key in ("03", "07", "05"):
        assert ask(server, "exclude", {"key": key, "excluded": True})[0] == 200
    status, content, _ = ask(server, "exclude", {"key": "07", "excluded": False})
    assert (status, json.loads(content)) == (200, {"excluded": 2})
    assert read_keys(view.path) == {"03", "05"}
    assert keys(rows(server, excluded="yes")) == ["03", "05"]
    assert rows(server, excluded="no")["total"] == 28
    assert View(str(data), view.path).excluded == {"03", "05"}
    assert ask(server, "exclude", {"key": "../x", "excluded": True})[0] == 404
    assert read_keys(view.path) == {"03", "05"}


def test_pictures_are_small_jpegs_and_cards_those_of_the_report(server: Server) -> None:
    status, content, headers = ask(server, "picture?key=03")
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert Image.open(io.BytesIO(content)).size == (67, 48)
    card = ask(server, "card?key=03")[1].decode()
    assert '<article class="card"' in card
    assert "a dog" in card
    assert ask(server, "picture?key=nowhere")[0] == 404


def test_a_reject_s_picture_is_shown_where_it_is_a_picture_and_still_there(server: Server) -> None:
    page = json.loads(ask(server, "rejects")[1])
    assert (page["total"], page["reasons"]) == (3, [["no-match", 3]])
    places = {reject["key"]: reject["row"] for reject in page["rejects"]}
    status, content, _ = ask(server, f"reject?row={places['there.jpg']}")
    assert (status, max(Image.open(io.BytesIO(content)).size)) == (200, 480)
    assert ask(server, f"reject?row={places['gone.jpg']}")[0] == 404
    status, content, _ = ask(server, f"reject?row={places['secret.txt']}")
    assert status == 404
    assert b"hidden" not in content
    assert [r["key"] for r in json.loads(ask(server, "rejects?text=GONE&reason=no-match")[1])["rejects"]] == [
        "gone.jpg"
    ]
    for wrong in ("-1", "99", "x", "../a", "9" * 40):
        assert ask(server, f"reject?row={wrong}")[0] in (400, 404)


@pytest.mark.parametrize(
    "path",
    [
        "../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "dataset.json",
        "picture?key=../secret.txt",
        "view.css/../x",
        "%00",
        "samples/",
    ],
)
def test_nothing_else_can_be_read(server: Server, path: str) -> None:
    status, content, _ = ask(server, path)
    assert status == 404
    assert b"hidden" not in content
    assert b"root:" not in content


def test_only_who_knows_the_token_and_names_this_server_is_answered(server: Server) -> None:
    own = f"127.0.0.1:{server.server_port}"
    assert ask(server, "", host=own)[0] == 200
    assert ask(server, "", host=f"localhost:{server.server_port}")[0] == 200
    for token in ("", "x", server.token[:-1], server.token + "x", "%C3%A9"):
        assert ask(server, "", token=token)[0] == 403
    assert ask(server, "", host=f"evil.example:{server.server_port}")[0] == 403  # a name that resolves to this machine
    assert ask(server, "exclude", {"key": "03", "excluded": True}, origin="http://evil.example")[0] == 403
    assert ask(server, "exclude", {"key": "03", "excluded": True}, origin=f"http://{own}")[0] == 200
    assert server.server_address[0] == "127.0.0.1"
    headers = ask(server, "")[2]
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("samples?where=widht%20%3E%203", "no column 'widht', did you mean 'width'"),
        ("samples?sort=caption", "no column 'caption' to sort by"),
        ("samples?threshold=much", "threshold and page are numbers"),
        ("samples?other=1", "no field 'other'"),
        ("samples?score=width&threshold=1", "no column 'width' to score by"),
        ("samples?column=scores&value=1", "no column 'scores' to class by"),
        ("samples?where=__import__('os')", "the functions are"),
        ("curve?column=labels", "no column 'labels' to score by"),
        ("values?column=scores", "no column 'scores' to class by"),
        ("rejects?page=x", "page is a number"),
    ],
)
def test_a_wrong_field_is_told(server: Server, path: str, message: str) -> None:
    status, content, _ = ask(server, path)
    assert status == 400
    assert message in content.decode()


def test_a_body_that_is_too_long_or_no_json_is_refused(server: Server) -> None:
    assert ask(server, "exclude", {"key": "x" * 10_000})[0] == 404
    assert ask(server, "exclude", ["03"])[0] == 404
    assert ask(server, "samples", {"page": "0"})[0] == 404  # it is not for POST


@pytest.mark.parametrize("recipe", [name for name in FORMATS if name in ("blip-diffusion", "mip-adapter", "captioned")])
def test_every_recipe_can_be_looked_through(recipe: str, tmp_path: Path) -> None:
    made: dict[str, Any] = {"blip-diffusion": lambda key: pair(key, size=(120, 80), box=(10, 8, 40, 50))}
    made |= {"mip-adapter": lambda key: example_of_objects(key, TWO), "captioned": example}
    write_dataset(tmp_path / "data", [[made[recipe](key) for key in "ab"]], sample_format=FORMATS[recipe])
    view = View(str(tmp_path / "data"), tmp_path / "list.txt")
    columns = view.columns()
    assert view.page(Query(sort=columns["sort"][-1]))["total"] == 2
    assert all(view.curve(column) is not None for column in columns["score"])
    assert Image.open(io.BytesIO(view.picture("a"))).size[0] > 10


def test_a_list_elsewhere_and_a_folder_without_a_dataset(tmp_path: Path, data: Path, run: Run) -> None:
    assert default_list("demo/out/") == Path("demo/out.excluded.txt")
    assert default_list("gs://bucket/out") == Path("out.excluded.txt")
    view = View(str(data), tmp_path / "no" / "such" / "list.txt")
    with pytest.raises(ConfigError, match="to sort by"):
        view.page(Query(sort="shard"))
    with pytest.raises(InputError, match="no sample"):
        view.exclude("nowhere", excluded=True)
    status, printed = run("view", tmp_path)
    assert status == 1
    assert "holds no dataset" in printed


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM:
        pytest.skip("no Chromium")
    with start_browser() as started:
        yield started


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Page]:  # noqa: ANN401
    """The page, which must not complain, nor ask another server."""
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        opened = context.new_page()
        complaints: list[str] = []
        opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on(
            "request", lambda r: None if r.url.startswith((server.address, "data:")) else complaints.append(r.url)
        )
        opened.goto(server.address)
        opened.wait_for_selector(".tile img")
        yield opened
        # What is wrong in a query, and pictures of rejects that are not there, are answered by an error's status.
        assert [text for text in complaints if "404" not in text and "400" not in text] == []


def test_the_page_searches_sorts_and_filters(page: Page) -> None:
    assert page.locator("#grid .tile").count() == PAGE
    assert page.inner_text("#count") == "30 samples"
    page.fill('[name="text"]', "07")
    expect(page.locator("#count")).to_have_text("1 samples")
    assert '"07" in lower(key)' in page.inner_text("#command")
    page.fill('[name="text"]', "")
    page.select_option('[name="sort"]', "-width")
    expect(page.locator(".tile").first).to_have_attribute("aria-label", "29")
    page.click('#samples [data-step="1"]')
    expect(page.locator(".tile").first).to_have_attribute("aria-label", "05")
    page.fill('[name="where"]', "widht > 3")
    expect(page.locator("#problem")).to_contain_text("did you mean")


def test_the_slider_says_what_a_threshold_would_leave(page: Page) -> None:
    page.select_option('[name="score"]', "scores")
    expect(page.locator("#left")).to_have_text("0.5 leaves 30 samples with 40 scores")
    page.focus('[name="slider"]')
    page.keyboard.press("End")
    expect(page.locator("#left")).to_have_text("0.6 leaves 10 samples with 10 scores")
    expect(page.locator("#count")).to_have_text("10 samples")


def test_the_keyboard_moves_opens_and_excludes(page: Page, server: Server) -> None:
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.ariaLabel") == "Open 01"
    page.keyboard.press("x")
    page.wait_for_selector(".tile.out")
    assert read_keys(server.view.path) == {"01"}
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open] .card")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector('dialog [aria-label="Sample 02"]')
    page.keyboard.press("x")
    expect(page.locator(".tile.out")).to_have_count(2)
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.ariaLabel") == "Open 02"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.name") == "text"
    assert "--exclude" in page.inner_text("#command")


def test_a_caption_cannot_become_markup(browser: Any, tmp_path: Path) -> None:  # noqa: ANN401
    evil = "<img src=x onerror=document.title='evil'><script>document.title='evil'</script> a dog"
    record = replace(
        example("a"), caption=evil, source_caption=evil, phrases=(Phrase("a dog", 79, 84, "dog", (79, 84)),)
    )
    write_dataset(tmp_path / "data", [[replace(record, source=Source(evil, evil))]])
    with Server(View(str(tmp_path / "data"), tmp_path / "list.txt")) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        page = browser.new_page()
        page.goto(server.address)
        page.click(".tile .shot")
        page.wait_for_selector("dialog[open] .card")
        page.wait_for_load_state("networkidle")
        assert page.title() == "FastComposer: 1 samples"
        assert page.inner_text(".tile .text") == evil
        page.close()
        server.shutdown()


def test_rejects_have_a_tab_of_their_own(page: Page) -> None:
    page.click("#tab-rejects")
    page.wait_for_selector("#reject-grid .tile")
    assert page.inner_text("#reject-count") == "3 rejects"
    expect(page.locator("#reject-grid .absent")).to_have_count(2)
    assert page.locator("#reject-grid img").count() == 1


def test_it_fits_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 780})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    small = """[...document.querySelectorAll('main button, main select, main input')]
      .filter(e => e.offsetParent && e.type !== 'checkbox' && e.getBoundingClientRect().height < 36).length"""
    assert page.evaluate(small) == 0
    page.click(".tile .shot")
    page.wait_for_selector("dialog[open] .card")
    assert page.evaluate("document.querySelector('dialog').scrollWidth") <= 360
