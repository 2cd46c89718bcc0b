from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from pages import Document
from PIL import Image
from sample_results import HOSTILE
from visits import NEEDS_BROWSER

from regard.report.contact_sheet import Picture, SheetRecord, contact_sheet, write_contact_sheet


def jpeg(size: tuple[int, int] = (40, 30), shade: int = 120) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (shade, 90, 160)).save(stream, "JPEG")
    return stream.getvalue()


def record(**changes) -> SheetRecord:
    answers = [("cat", 0.915), ("dog", 0.0601), ("newt", 0.02)]
    given = {
        "title": "Predictions of davit",
        "command": ["regard", "predict", "run", "a b.jpg", "--out", "out"],
        "pictures": [Picture("photos/one.jpg", jpeg(), answers), Picture("photos/two.jpg", jpeg((4, 128)), answers)],
        "bad": [("photos/text.jpg", "is not an image")],
        "total": 5,
        "counts": [("cat", 4), ("dog", 1)],
        "facts": [("data: image_size", "32")],
    }
    return SheetRecord(**{**given, **changes})


def test_every_image_is_there_with_its_answers() -> None:
    html = contact_sheet(record())
    page = Document(html)
    sources = [attrs["src"] for attrs in page.tags("img")]
    assert len(sources) == 2
    assert all((source or "").startswith("data:image/jpeg;base64,") for source in sources)
    assert [attrs["alt"] for attrs in page.tags("img")] == ["photos/one.jpg", "photos/two.jpg"]
    assert "photos/one.jpg cat 91.5 % dog 6.0 % newt 2.0 %" in page.text
    assert re.findall(r'style="width:([\d.]+)%"', html)[:3] == ["91.5", "6.0", "2.0"]
    assert "3 more images are left out here; predictions.csv has all of them" in page.text
    assert "photos/text.jpg is not an image" in page.text
    assert "regard predict run 'a b.jpg' --out out" in page.text
    assert "most frequent cat the answer for 4" in page.text


def test_what_the_network_looked_at_stands_beside_its_image() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 0, 0)).save(stream, "PNG")
    first, second = record().pictures
    page = Document(contact_sheet(record(pictures=[replace(first, overlay=stream.getvalue()), second])))
    sources = [attrs["src"] for attrs in page.tags("img")]
    assert [source.split(";")[0] for source in sources] == ["data:image/jpeg", "data:image/png", "data:image/jpeg"]
    assert "what the network looked at: the redder, the more" in page.text
    assert "looked at" not in Document(contact_sheet(record())).text


def test_the_page_asks_for_nothing_and_is_small() -> None:
    html = contact_sheet(record())
    page = Document(html)
    assert "Plotly" not in html.split("<script", 1)[0]
    assert len(html) < 60_000
    for tag, attrs in page.elements:
        assert tag not in ("iframe", "object", "embed", "base", "form")
        for name, value in attrs.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "action", "data"):
                assert (value or "").startswith(("#", "data:"))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_shown_as_they_are(text: str) -> None:
    given = record(
        title=text,
        pictures=[Picture(text, jpeg(), [(text, 0.5)])],
        bad=[(text, text)],
        counts=[(text, 1)],
        facts=[(text, text)],
        command=["regard", text],
    )
    page = Document(contact_sheet(given))
    assert len(page.scripts) == len(Document(contact_sheet(record())).scripts)
    assert [tag for tag, _ in page.elements].count("img") == 1


@pytest.mark.parametrize("share", [float("nan"), float("inf"), -1.0, 7.0])
def test_shares_that_are_none_have_no_bar_beyond_the_frame(share: float) -> None:
    html = contact_sheet(record(pictures=[Picture("a", jpeg(), [("cat", share)])]))
    (width,) = re.findall(r'style="width:([\d.]+)%"', html)
    assert 0 <= float(width) <= 100
    assert "nan" not in Document(html).text


def test_no_images_and_many_bad_files() -> None:
    page = Document(contact_sheet(record(pictures=[], total=0, counts=[], bad=[("a", "is empty")] * 1200)))
    assert "No image had a prediction." in page.text
    assert "200 more are left out here" in page.text
    assert "Skipped" not in Document(contact_sheet(record(bad=[]))).text


def test_the_file_is_written_whole(tmp_path: Path) -> None:
    write_contact_sheet(record(), tmp_path / "predictions.html")
    assert (tmp_path / "predictions.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.html"]


def browser(test):
    for mark in NEEDS_BROWSER:
        test = mark(test)
    return test


@browser
def test_the_page_opens_offline(open_html, tmp_path: Path) -> None:
    write_contact_sheet(record(), tmp_path / "predictions.html")
    seen = open_html(tmp_path / "predictions.html")
    assert seen.outside() == []
    assert seen.complaints == []
    assert seen.page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
