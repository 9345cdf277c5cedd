"""The report is one page that needs nothing, escapes what it is given and says what happened."""

import base64
from html.parser import HTMLParser
from io import BytesIO

import matplotlib.image
import numpy as np
import pytest
from score_helpers import row, target

from utils.errors import InputError
from utils.prompts.kinds import Click
from utils.results.figures import png_bytes
from utils.results.overlays import overlay_figure
from utils.validation.protocol import Overlay
from utils.validation.report import score_figure, step_times, worst_cases, write_report
from utils.validation.scores import CaseScore

#: Elements that have no end.
VOID = {"meta", "img", "wbr"}

BOXED = CaseScore.from_dict(row("CT_AMOS_1", target(), target("spleen", dsc=(0.1, 0.2, 0.3))))
CLICKED = CaseScore.from_dict(row("CT_AMOS_2", has_box=False, seconds=(0.0, 4.0, 5.0)))
LATE = CaseScore.from_dict(row("CT_AMOS_3<b>", has_box=False, seconds=(0.0, 50.0, 41.0)))
NO_SCORE = "\N{EN DASH}"
SETTINGS = {"checkpoint": "best.pt", "clicks": "2"}


class Page(HTMLParser):
    """The page's text, its tags with their attributes, and whether all that opens closes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags, self._open = "", [], []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] for _, attrs in self.tags if name in attrs]


def report(folder, scores=(BOXED, CLICKED, LATE), **changes) -> bytes:
    given = {"model": "tiny", "fingerprint": "3f9a", "resolution": "128³", "settings": SETTINGS}
    write_report(folder / "report.html", scores, **given | changes)
    return (folder / "report.html").read_bytes()


def overlay(case: str = "CT_AMOS_1"):
    mask = np.zeros((8, 9, 10), bool)
    mask[2:6, 3:7, 4:8] = True
    image = np.arange(mask.size, dtype=np.float32).reshape(mask.shape)
    figure = overlay_figure(
        image, mask, ~mask, spacing_zyx=(2, 1, 1), clicks=[Click((3, 4, 5), True)]
    )
    return Overlay(case, "DSC 0.8", png_bytes(figure))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Page:
    """A report of three cases, one of them late, with one failure and one overlay."""
    folder = tmp_path_factory.mktemp("report")
    html = report(folder, overlays=[overlay()], failures={"CT_AMOS_9": "no labels"})
    assert [path.name for path in folder.iterdir()] == ["report.html"]
    return Page(html.decode())


def test_the_page_needs_nothing_beside_it(page):
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert not page.attributes("href")
    assert "http" not in page.text
    assert "url(" not in page.text  # the style is text here
    sources = page.attributes("src")
    assert len(sources) == 3
    for source in sources:
        assert source.startswith("data:image/png;base64,")
        png = base64.b64decode(source.split(",")[1], validate=True)
        assert matplotlib.image.imread(BytesIO(png), format="png").ndim == 3


def test_the_same_scores_make_the_same_bytes(tmp_path):
    first, second = (report(tmp_path, overlays=[overlay()]) for _ in range(2))
    assert first == second
    assert b"Matplotlib" not in png_bytes(score_figure([BOXED], "dsc", "DSC"))


def test_what_is_given_is_text_and_never_markup(tmp_path):
    nasty = "<b>&\"'</td>"
    html = report(
        tmp_path,
        model=nasty,
        fingerprint=nasty,
        settings={nasty: nasty},
        failures={nasty: nasty},
        overlays=[overlay(nasty)],
    )
    page = Page(html.decode())
    assert [tag for tag, _ in page.tags].count("b") == 6  # the headline figures, no more
    assert page.text.count(nasty) >= 6
    assert "CT_AMOS_3<b>" in page.text


def test_headline_figures_are_means_over_cases(page):
    """DSC_Final: (0.8 + 0.3) / 2, 0.8, and 0 for the late one, so 1.35 / 3."""
    assert "0.450DSC_Final" in page.text
    assert "0.400NSD_Final, official" in page.text
    assert "0.467NSD_Final, correct" in page.text


def test_failures_and_late_cases_are_told(page, tmp_path):
    assert "1 case failed and is in none of the numbers below" in page.text
    assert "1 case took longer than allowed and counts as 0" in page.text
    assert "1 of 3 cases (33.3 %) took longer than 90 s a target" in page.text
    assert "CT_AMOS_9no labels" in page.text
    quiet = Page(report(tmp_path, scores=[BOXED]).decode()).text
    assert "failed" not in quiet
    assert NO_SCORE not in quiet  # every group has a box
    assert "0 of 1 cases (0.0 %)" in quiet


def test_settings_are_shown_in_the_order_given(page):
    assert "checkpointbest.pt\nclicks2\n" in page.text


def test_a_group_without_boxes_has_no_score_for_the_box(tmp_path):
    assert NO_SCORE in Page(report(tmp_path, scores=[CLICKED]).decode()).text


def test_many_clicks_leave_columns_out_but_not_the_last(tmp_path):
    scores = tuple(k / 20 for k in range(11))
    many = target(dsc=scores, nsd=scores, nsd_official=scores)
    case = CaseScore.from_dict(row("a", many, seconds=(1.0,) * 11))
    heads = Page(report(tmp_path, scores=[case]).decode()).text
    assert "box123510\n" in heads.replace("\n\n", "\n")


def test_step_times_leave_skipped_box_steps_out():
    times = {time.name: time for time in step_times([BOXED, CLICKED, LATE])}
    assert list(times) == ["box", "click 1", "click 2", "whole case"]
    assert (times["box"].cases, times["box"].median) == (1, 1)
    assert (times["click 1"].cases, times["click 1"].median, times["click 1"].longest) == (3, 4, 50)
    assert times["whole case"].longest == 91
    assert [time.name for time in step_times([CLICKED])] == ["click 1", "click 2", "whole case"]


def test_worst_cases_are_those_that_end_lowest():
    worst = worst_cases([CLICKED, BOXED, LATE], 2)
    assert [case.case for case in worst] == ["CT_AMOS_3<b>", "CT_AMOS_1"]


def test_curves_show_cases_with_and_without_a_box():
    pictures = [
        matplotlib.image.imread(BytesIO(png_bytes(score_figure(cases, "dsc", "DSC"))), format="png")
        for cases in ([BOXED], [CLICKED], [BOXED, CLICKED])
    ]
    blue, vermillion = (np.array((0, 114, 178)) / 255, np.array((213, 94, 0)) / 255)
    seen = [
        [(np.abs(p[..., :3] - c).max(axis=-1) < 0.02).sum() > 100 for c in (blue, vermillion)]
        for p in pictures
    ]
    assert seen == [[True, False], [False, True], [True, True]]


def test_no_case_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(InputError, match="0 cases"):
        report(tmp_path, scores=[])
    assert not list(tmp_path.iterdir())
