"""`python -m pretraining.evaluate_report`: rows on disk to one page, read back as a browser would."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from pretraining import evaluate_report
from pretraining.downstream.common import EvaluateConfig, Metric, Result, write_result
from pretraining.downstream.rows import find_rows, read_row

pytest.importorskip("jinja2", reason="not installed: pip install -e '.[report]'")


class Page(HTMLParser):
    """Tables as rows of cells' texts, and what the page refers to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.links: list[str] = []
        self.text = path.read_text()
        self._cell = False
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True
        self.links += [
            value for name, value in attrs if name in ("src", "srcset", "href") and value
        ]

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.tables[-1][-1][-1] += data


def write_row(
    out: Path, task: str, label: str, value: float, depth: int = 0, **more: object
) -> Path:
    """A row with an interval of 2 either way, and a curve over `depth` blocks."""
    name = "J&F_%" if task == "davis" else "top1_%"

    def metric(value: float) -> dict[str, Metric]:
        return {name: Metric(value, value - 2, value + 2, 61)}

    layers = [metric(value - abs(i - depth // 2)) for i in range(depth + 1)] if depth else []
    best = depth // 2 if depth else None
    result = Result(task=task, metrics=metric(value), layers=layers, best_layer=best, **more)  # pyright: ignore[reportArgumentType]
    config = EvaluateConfig(data=Path("/data"), out=out, label=label)
    return write_result(result, config, None, [f"task={task}", "data=/my data", f"label={label}"])


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, Path]:
    """A page that is only looked at, and its folder."""
    folder = tmp_path_factory.mktemp("report")
    return make(write_rows(folder / "rows"), folder / "page"), folder / "page"


def write_rows(out: Path) -> Path:
    worse = write_row(out, "davis", "worse", 30.123, depth=8)
    worse.write_text(worse.read_text().replace('"untrained": false', '"untrained": true'))
    film = out / "davis" / "better <b>" / "films" / "a seq.mp4"
    film.parent.mkdir(parents=True)
    film.write_bytes(b"film")
    write_row(
        out,
        "davis",
        "better <b>",
        45.0,
        depth=12,
        files=["films/a seq.mp4", "films/gone.mp4", "../worse/result.json"],
        skipped={"00007.jpg": "truncated & small"},
        notes=["two sequences"],
        extra={"sequences": [{"sequence": "goat", "J_%": 12.5}], "rules": {"top_k": 5}},
    )
    write_row(out, "imagenet", "digits", 99.0)
    some = {"layer_numbers": [2, 4], "frames": 16, "pooling": "mean"}
    path = write_row(out, "my_task", "other", 50.0, depth=1, extra=some)
    path.write_text(path.read_text().replace('"blocks": null', '"blocks": 8'))
    return out


def make(results: Path, out: Path, *words: str) -> Page:
    evaluate_report.main([f"results={results}", f"out={out}", *words])
    return Page(out / "index.html")


def test_tables(made: tuple[Page, Path]) -> None:
    page, _ = made
    for table in page.tables:
        assert len({len(row) for row in table}) == 1  # every row has a cell for every column
    imagenet, davis, sequences, other = page.tables  # in the paper's order, then the rest
    assert other[1][2] == "0 of 8" and "frames 16, pooling mean" in page.text
    assert davis[0] == ["row", "of", "layer", "J&F %", "J %", "F %", "n"]
    assert davis[1][0].startswith("better <b> measured")  # the best is first
    assert davis[1][2:4] == ["6 of 12", "45.0 [43.0, 47.0]"] and davis[1][-1] == "61"
    assert [row[0] for row in davis if "untrained" in row[0]] == ["worse measured untrained"]
    assert davis[2][3] == "30.12 [28.12, 32.12]"
    published = [row for row in davis if "published, Table 10" in row[0]]
    assert len(published) == 7 and len(davis) == 1 + 2 + 7
    assert published[-1][0].startswith("Toto-large") and published[-1][3:6] == [
        "62.4",
        "59.2",
        "65.6",
    ]
    assert not any("measured" in row[0] for row in published)
    assert "published, Table 7" in str(imagenet) and "published" not in str(other)
    assert sequences == [["sequence", "J %"], ["goat", "12.5"]]


def test_what_the_page_shows_is_there(made: tuple[Page, Path]) -> None:
    page, folder = made
    files = [link for link in page.links if not link.startswith("#")]
    assert len(files) == 5  # a film, and the curves of two tasks for light and for dark pages
    assert all((folder / unquote(link)).is_file() for link in files)
    assert "http" not in "".join(page.links)
    assert "films/gone.mp4 is not there" in page.text
    assert "../worse/result.json is not there" in page.text  # nothing from outside of the row
    assert (
        "00007.jpg: truncated &amp; small" in page.text
        and "<li>better &lt;b&gt;: two sequences</li>" in page.text
    )
    assert "<b>" not in page.text.replace("<b>worse</b>", "").replace("<b>digits</b>", "").replace(
        "<b>other</b>", ""
    ).replace("<b>better &lt;b&gt;</b>", "")
    command = (
        "task=imagenet &#39;data=/my data&#39; label=digits"  # of no backbone: as it was given
    )
    assert command in page.text


def test_without_the_papers_rows(results: Path, tmp_path: Path) -> None:
    page = make(results, tmp_path / "page", "published=false")
    assert [len(table) for table in page.tables] == [2, 3, 2, 2]


def test_a_page_made_again_forgets_what_is_gone(results: Path, tmp_path: Path) -> None:
    make(results, tmp_path / "page")
    (results / "davis" / "better <b>" / "result.json").unlink()
    page = make(results, tmp_path / "page")
    assert "goat" not in page.text
    assert not (tmp_path / "page" / "files").exists()


def test_damaged_rows_are_named(results: Path, tmp_path: Path) -> None:
    path = results / "imagenet" / "digits" / "result.json"
    path.write_text(path.read_text()[:-40])
    rows, problems = find_rows(results)
    assert len(rows) == 3 and str(path) in problems[0]
    assert str(path) in make(results, tmp_path / "page").text
    empty = tmp_path / "empty" / "davis" / "x" / "result.json"
    empty.parent.mkdir(parents=True)
    empty.write_text("{}")
    with pytest.raises(SystemExit, match="KeyError"):
        evaluate_report.main([f"results={tmp_path / 'empty'}", f"out={tmp_path / 'page'}"])
    other = results / "my_task" / "other" / "result.json"
    other.write_text(other.read_text().replace('"layer_numbers": [', '"layer_numbers": [7, '))
    with pytest.raises(ValueError, match=r"2 layers, numbered \[7, 2, 4\]"):
        read_row(other)
    with pytest.raises(SystemExit, match="pretraining.evaluate out="):
        evaluate_report.main([f"results={tmp_path / 'nothing'}", f"out={tmp_path / 'page'}"])
