from __future__ import annotations

import io
from pathlib import Path

import pytest
from pages import Document
from PIL import Image
from sample_results import HOSTILE
from visits import NEEDS_BROWSER

from regard.report.record import EvaluationRecord
from regard.report.training import evaluation_page
from regard.report.views import VolumeRecord, volume_page, write_volume_page


def png(size: tuple[int, int] = (40, 30), shade: int = 120) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (shade, 90, 160)).save(stream, "PNG")
    return stream.getvalue()


def record(**changes) -> VolumeRecord:
    given = {
        "title": "scan, predicted by agunet",
        "command": ["regard", "predict", "run", "a scan.nii.gz"],
        "pictures": [("axial, slice 3 of 9", png()), ("coronal, slice 4 of 9", png((20, 60)))],
        "legend": [("lesion", (230, 159, 0))],
        "header": ("region", "voxels", "ml", "parts"),
        "rows": [("lesion", "1,234", "5.67", "2")],
        "notes": ["channel T1 is constant"],
        "facts": [("data: size", "48")],
    }
    return VolumeRecord(**{**given, **changes})


def test_the_page_shows_views_volumes_and_settings() -> None:
    page = Document(volume_page(record()))
    sources = [attrs["src"] or "" for attrs in page.tags("img")]
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "axial, slice 3 of 9" in page.text
    assert "region voxels ml parts lesion 1,234 5.67 2" in page.text
    assert "the patient's right is at the left" in page.text
    assert "channel T1 is constant" in page.text
    assert "regard predict run 'a scan.nii.gz'" in page.text
    assert "It is no diagnosis" in page.text
    assert "background:#e69f00" in volume_page(record())


def test_a_slice_has_no_sides() -> None:
    page = Document(volume_page(record(pictures=[("", png())])))
    assert "patient's right" not in page.text


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_shown_as_they_are(text: str) -> None:
    given = record(
        title=text,
        pictures=[(text, png())],
        legend=[(text, (0, 0, 0))],
        header=(text,),
        rows=[(text,)],
        notes=[text],
        facts=[(text, text)],
        command=["regard", text],
    )
    page = Document(volume_page(given))
    assert len(page.scripts) == len(Document(volume_page(record())).scripts)
    assert [tag for tag, _ in page.elements].count("img") == 1


def test_an_evaluation_shows_its_pictures_with_the_true_outline() -> None:
    given = EvaluationRecord(title="x", pictures=[("worst: axial", png())], legend=[("lesion", (1, 2, 3))])
    page = Document(evaluation_page(given))
    assert "worst: axial" in page.text
    assert "true outline" in page.text
    assert "Views" not in Document(evaluation_page(EvaluationRecord(title="x"))).text


def test_many_pictures_are_left_out_with_a_word() -> None:
    page = Document(volume_page(record(pictures=[(f"picture {number}", png((2, 2))) for number in range(63)])))
    assert len(list(page.tags("img"))) == 60
    assert "3 more pictures are left out here" in page.text


def test_the_file_is_written_whole(tmp_path: Path) -> None:
    write_volume_page(record(), tmp_path / "a.html")
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]


def browser(test):
    for mark in NEEDS_BROWSER:
        test = mark(test)
    return test


@browser
def test_the_page_opens_offline(open_html, tmp_path: Path) -> None:
    write_volume_page(record(), tmp_path / "a.html")
    seen = open_html(tmp_path / "a.html")
    assert seen.outside() == []
    assert seen.complaints == []
    shown = seen.page.evaluate("[...document.images].map(image => [image.naturalWidth, image.naturalHeight])")
    assert shown == [[40, 30], [20, 60]]
