"""The report as files: whole or not at all, escaped, readable offline and by programs."""

import csv
import io
import json
import re
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from fake_study import AWKWARD, FakeStudy, confirming_study, metrics_at, mixed_study

from skiprec.config import from_flat, read_toml
from skiprec.errors import OutputError, StudyError
from study import report
from study.analysis import analyse, rate
from study.estimate import duration
from study.report import Table, markdown_environment, markdown_table, markdown_text, note, write_report
from study.report._tables import cost

FIGURES = ("table1", "learning_curves", "cost", "noise", "parallel_coordinates", "slices", "importance", "data")
CONFIRMED_FIGURES = ("claims", "groups")


class Page(HTMLParser):
    """What a browser would see of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.text, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in ("img", "meta", "link", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The report on the mixed study: its files."""
    return write_report(mixed_study().study, tmp_path_factory.mktemp("reports") / "deep" / "report")


@pytest.fixture(scope="module")
def folder(written):
    return written[0].parent


@pytest.fixture(scope="module")
def page(folder):
    return Page((folder / "report.html").read_text())


def test_every_file_is_written_and_named(written, folder):
    """And nothing else, beside them either."""
    assert [str(path.relative_to(folder)) for path in written] == [
        "report.html", "report.md", "summary.json", "trials.csv", "best.toml", "recipe.toml",
        *(f"figures/{n}.png" for n in FIGURES),
    ]  # fmt: skip
    assert sorted(path for path in folder.parent.rglob("*") if path.is_file()) == sorted(written)


def test_the_page_needs_nothing_but_itself(folder, page):
    """No script, nothing fetched: each picture is in it."""
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert len(page.addresses) == 2 * len(FIGURES)  # each for a screen and for a telephone
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    style = re.search(r"<style>(.*?)</style>", (folder / "report.html").read_text(), re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style


def test_the_page_is_well_formed(page):
    """Every tag that opens closes, in order; one title, one main heading."""
    assert page.open == []
    assert (page.tags.count("title"), page.tags.count("h1")) == (1, 1)


def test_names_and_errors_are_text_and_not_tags(folder, page):
    """The arm `<b>|x $y_` and an error with a script in it."""
    assert "b" not in page.tags
    assert AWKWARD in " ".join(page.text)
    assert "<script>alert(1)</script>" in " ".join(page.text)
    assert "<script" not in (folder / "report.html").read_text()


def test_markdown_escapes_cells(folder):
    """A pipe would end a cell, a tag would be one; the rows keep their number of cells."""
    text = (folder / "report.md").read_text()
    assert r"&lt;b&gt;\|x \$y_" in text
    assert "<script" not in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_markdown_shows_the_figures_by_their_files(folder):
    """Each link is there, and what it points to."""
    links = re.findall(r"!\[[^\]]+\]\((.*?)\)", (folder / "report.md").read_text())
    assert sorted(links) == sorted(f"figures/{name}.png" for name in FIGURES)
    assert all((folder / link).read_bytes().startswith(b"\x89PNG") for link in links)


def test_markdown_text_is_one_line_that_says_just_what_it_was():
    """No code, emphasis, links, tags, entities or formulas."""
    assert markdown_text("a\nb *c* `d` [e] <f> &g; h|i $j$ k\\l learning_rate") == (
        r"a b \*c\* \`d\` \[e\] &lt;f&gt; &amp;g; h\|i \$j\$ k\\l learning_rate"
    )


def test_markdown_escapes_every_value_unless_told_otherwise():
    """A template cannot forget it."""
    assert markdown_environment().from_string("{{ x }}").render(x="<b>") == "&lt;b&gt;"


def test_text_columns_keep_room_for_their_longest_cell_up_to_a_bound():
    """So a column of short words does not push the numbers out of a telephone's sight, nor does one long name."""
    assert Table(("a", "b", "n"), (("x", "hurts", "1"), ("yz", "w" * 90, "2")), text_columns=2).letters == (2, 13)


def test_a_markdown_table_aligns_numbers_to_the_right():
    """And shows strong rows in bold, empty cells apart; columns line up without being rendered."""
    assert markdown_table(Table(("a", "b"), (("x", "1"), ("", "2")), strong=(1,))) == (
        "| a   |     b |\n| --- | ----: |\n| x   |     1 |\n|     | **2** |"
    )


def test_both_pages_start_with_the_answer(folder, page):
    """That nothing is confirmed, how to confirm it, the best settings; then the noise, before any comparison."""
    order = (
        "Do skips help here?",
        "Nothing is confirmed yet.",
        "study confirm demo-0123abcd",
        ".4640 validation HR@10",
    )
    order += ("Noise first", "Without and with skips", "Learning", "The search", "Cost", "How to make it again")
    for text in (" ".join(" ".join(page.text).split()), (folder / "report.md").read_text()):
        places = [text.index(part) for part in order]
        assert places == sorted(places)
        assert "single runs on validation suggest: not shown; bidirectional, S+ is below S-." in text


def test_table1_has_ours_beside_the_papers(folder):
    """S+ item: HR@1 .5, HR@5 .8, HR@20 1.1 times .464; the missing row says that it is missing."""
    text = (folder / "report.md").read_text()
    rows = [[cell.strip(" *") for cell in line.split("|")] for line in text.splitlines()]
    ours = [".2320", ".3712", ".4640", ".5104", ".3073", ".5088", ".5867", ".6554", ""]
    assert any(row[-9:] == ours for row in rows)
    missing = ["bidirectional S+ session", "not in this study", "0", "-", "-", "-", "-", ".2101", ".4370", ".5270"]
    assert any(row[1:11] == missing for row in rows)
    assert "the best cell of each row on validation" in text


def test_the_summary_is_json_with_the_verdicts_numbers(folder):
    """Read by programs: strict JSON, differences and margins as numbers."""
    found = json.loads((folder / "summary.json").read_text(), parse_constant=pytest.fail)
    assert found["best"]["value"] == pytest.approx(0.464)
    assert found["finished"] is True
    uni, bi, control = found["verdict"]["comparisons"]
    assert uni["difference"] == pytest.approx(0.014)
    assert (uni["outcome"], bi["outcome"]) == ("no difference shown", "lower")
    assert (uni["of"], uni["with"], uni["cells"], uni["other_cells"]) == ("S+ item", "S-", 28, 4)
    assert control["with"] == "control other_session, item"
    assert found["cells"] == {"planned": 36, "complete": 35, "running": 0, "waiting": 0, "pruned": 0, "failed": 1}
    assert found["attempts"] == {"failed": 3, "interrupted": 1, "cells_recovered": 1}


def test_a_metric_that_is_not_finite_becomes_null(tmp_path):
    """JSON has no NaN, and the pages show a dash."""
    fake = FakeStudy()
    fake.add(0.45, alpha=0.5, learning_rate=0.001, metrics=metrics_at(0.45) | {"val/mrr": float("nan")})
    write_report(fake.study, tmp_path / "report")
    found = json.loads((tmp_path / "report" / "summary.json").read_text(), parse_constant=pytest.fail)
    assert found["best"]["metrics"]["val/mrr"] is None
    assert "nan" not in (tmp_path / "report" / "report.md").read_text()


def test_trials_csv_has_a_line_for_each_attempt(folder):
    """With names as they are: a CSV quotes, and escapes nothing."""
    with open(folder / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 39
    assert sum(row["arm"] == AWKWARD for row in rows) == 4
    assert {row["attempt"] for row in rows} == {"1", "2"}


def test_best_toml_is_the_best_cells_configuration(folder):
    """Every setting of it, as `skiprec train --config` reads it."""
    config = from_flat(read_toml(folder / "best.toml"))
    assert (config.loss.alpha, config.loss.context, config.learning_rate, config.seed) == (1.0, "item", 0.0005, 1)


def test_the_command_quotes_the_path(page):
    """The dataset's folder has a space in its name."""
    assert "skiprec train 'data/mini set' --config best.toml --out RUN" in " ".join(page.text)


def test_the_same_study_gives_the_same_bytes(folder, tmp_path):
    """Pictures too: no date, no random order."""
    for path in write_report(mixed_study().study, tmp_path / "again"):
        assert path.read_bytes() == (folder / path.relative_to(tmp_path / "again")).read_bytes(), path


def test_an_unfinished_study_says_so_at_the_top(tmp_path):
    """Before the answer, in both pages and in the summary."""
    write_report(mixed_study(planned=60).study, tmp_path / "report")
    text = " ".join(Page((tmp_path / "report" / "report.html").read_text()).text)
    assert text.index("Unfinished.") < text.index("Nothing is confirmed yet")
    assert "35 of 60 cells are complete" in text
    assert "> **Note.** Unfinished. 35 of 60 cells" in (tmp_path / "report" / "report.md").read_text()
    assert json.loads((tmp_path / "report" / "summary.json").read_text())["finished"] is False


def test_one_trial_makes_a_report(tmp_path):
    """Without the figures that would show nothing, and with the reason."""
    fake = FakeStudy(baselines={})
    fake.add(0.44, alpha=0.5, learning_rate=0.001)
    written = {path.name for path in write_report(fake.study, tmp_path / "report")}
    assert {"table1.png", "learning_curves.png", "cost.png"} <= written
    assert not {"slices.png", "parallel_coordinates.png", "importance.png", "noise.png"} & written
    text = (tmp_path / "report" / "report.md").read_text()
    assert "this study cannot say" in text
    assert "No setting differs between the complete cells" in text


def test_a_study_that_failed_throughout_is_refused(tmp_path):
    """Nothing is left behind."""
    fake = FakeStudy()
    for attempt in (1, 2):
        fake.add(cell="only", attempt=attempt, error="boom", alpha=0.5, learning_rate=0.001)
    with pytest.raises(StudyError, match="0 waiting, 1 failed"):
        write_report(fake.study, tmp_path / "report")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_and_left_alone(tmp_path):
    """Even an empty one."""
    (tmp_path / "report").mkdir()
    with pytest.raises(OutputError, match="already exists"):
        write_report(mixed_study().study, tmp_path / "report")
    assert list((tmp_path / "report").iterdir()) == []


def test_a_report_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    """The disk fills at the third file."""
    write_bytes = report.Path.write_bytes

    def full(path, content):
        if path.name == "summary.json":
            raise OSError(28, "No space left on device")
        return write_bytes(path, content)

    monkeypatch.setattr(report.Path, "write_bytes", full)
    fake = FakeStudy()
    fake.add(0.44, alpha=0.5, learning_rate=0.001)
    with pytest.raises(OutputError, match="No space left"):
        write_report(fake.study, tmp_path / "report")
    assert list(tmp_path.iterdir()) == []


def test_durations_are_in_a_unit_that_fits():
    """Seconds, minutes, hours."""
    assert [duration(s) for s in (48, 720, 12240)] == ["48 s", "12 min", "3.4 h"]


def test_the_median_of_an_even_number_of_cells_lies_between_the_middle_two():
    """As any statistics book has it, and not the lower of the two."""
    found = analyse(mixed_study().study)
    values = sorted(cell.value for cell in found.cells)
    for arm in found.arms:
        own = sorted(cell.value for cell in arm.cells)
        (shown,) = (row for row in cost(found).rows if row[0] == arm.arm)
        assert shown[3] == (rate(float(np.median(own))) if own else "-")
    assert cost(found).rows[-1][3] == rate(float(np.median(values)))
    assert any(len(arm.cells) % 2 == 0 and len(arm.cells) for arm in found.arms)


def test_a_finished_study_says_what_it_took_and_what_was_estimated(tmp_path):
    """One cell of 50 s, where 40 were estimated."""
    fake = FakeStudy()
    fake.add(0.44, alpha=0.5, learning_rate=0.001)
    write_report(fake.study, tmp_path / "plain")
    assert re.search(r"\| time +\| 50 s +\|", (tmp_path / "plain" / "report.md").read_text())
    fake.study.set_user_attr("first_estimate", {"cells": 2, "seconds": 40.0})
    write_report(fake.study, tmp_path / "compared")
    text = (tmp_path / "compared" / "report.md").read_text()
    assert re.search(r"\| time +\| 50 s; estimated after 2 cells: 40 s \(\+25%\) +\|", text)
    summary = json.loads((tmp_path / "compared" / "summary.json").read_text())
    assert (summary["seconds_taken"], summary["first_estimate"]["seconds"]) == (50.0, 40.0)


@pytest.fixture(scope="module")
def confirmed(tmp_path_factory):
    """The report on the mixed study with its confirming runs."""
    runs = confirming_study().run_all()
    out = tmp_path_factory.mktemp("reports") / "confirmed"
    write_report(mixed_study().study, out, runs.study, runs.read_ranks)
    return out


def test_with_confirming_runs_the_page_is_in_the_order_of_its_questions(confirmed):
    """Answer, claims, noise, then comparisons; how the settings were found after that."""
    order = (
        "Do skips help here?",
        "Not shown to be due to these skips: S+ item beats S-",
        "The measures disagree",
        "Best settings",
    )
    order += ("Noise first", "What was claimed", "Verdicts:", "Test hit rates of each arm", "By group", "Skip gap")
    order += ("Learning curves of the confirming", "The search", "Cost", "How to make it again", "What failed")
    page = Page((confirmed / "report.html").read_text())
    for text in (" ".join(" ".join(page.text).split()), (confirmed / "report.md").read_text()):
        places = [text.index(part) for part in order]
        assert places == sorted(places)
    assert page.open == []


def test_names_of_contexts_are_text_that_disturbs_nothing(confirmed):
    """A script, a line's end, and letters that run to the left, in every file that people read."""
    html, text = (confirmed / "report.html").read_text(), (confirmed / "report.md").read_text()
    said = " ".join(Page(html).text)
    assert "<script" not in html + text
    for name in (
        "<script>alert('ctx')</script>",
        "one and two",
        "\u2068\u05e8\u05d3\u05d9\u05d5 \u05e2\u05d1\u05e8\u05d9\u2069",
    ):
        assert name in said
    assert "&lt;script&gt;alert('ctx')&lt;/script&gt;" in text


def test_every_figure_says_what_is_to_be_seen_in_it(confirmed):
    """For who cannot see it: with the figures of the first claim, by each measure."""
    alternatives = re.findall(r'<img alt="([^"]+)"', (confirmed / "report.html").read_text())
    assert len(alternatives) == len(FIGURES) + len(CONFIRMED_FIGURES)
    assert all(len(text) > 30 for text in alternatives)
    effect = json.loads((confirmed / "summary.json").read_text())["confirmed"]["claims"][0]["effect"]
    assert f"S+ item less S-, HR@10: sampled {100 * effect['estimate']:+.1f} points" in " ".join(alternatives)


def test_baselines_stand_in_the_table_of_arms_with_a_margin_for_sessions_alone(confirmed):
    """.39 among 1,200 sessions: 1.96 sqrt(.39 .61 / 1200) = .0276."""
    text = (confirmed / "report.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| baseline: session-popular") and "±" in line]
    assert [".3900 ± .0276" in row for row in rows] == [True, True]  # by K, and by measure


def test_the_data_section_says_what_decides_whether_a_study_can_learn(folder, page, tmp_path):
    """With what it means; a share of nothing is a dash, and how the sessions were split by date is counted."""
    text = " ".join(page.text)
    for said in ("training sessions with no anchor", "3.1%", "skipped after a skipped track", "75.0%"):
        assert said in text
    cells = [t.strip() for t in page.text if t.strip()]
    assert cells[cells.index("test targets never trained on") + 2] == "-"
    assert cells[cells.index("sessions: trained on (the first days)") + 1] == "960"
    assert json.loads((folder / "summary.json").read_text())["dataset"]["description"]["no_anchor"] == 0.031
    fake = FakeStudy()
    fake.add(0.44, alpha=0.5, learning_rate=0.001)
    fake.study.set_user_attr("description", None)
    assert "data.png" not in {path.name for path in write_report(fake.study, tmp_path / "report")}


def test_the_tables_are_files_too(confirmed):
    """Every claim, measure and K; every arm and baseline; every claim's groups."""
    texts = {name: (confirmed / f"{name}.csv").read_text() for name in ("claims", "arms", "groups")}
    rows = {name: list(csv.DictReader(io.StringIO(text, newline=""))) for name, text in texts.items()}
    assert len(rows["claims"]) == 4 * 3 * 4
    declared = [(r["arm"], r["than"], r["measure"], r["k"]) for r in rows["claims"] if r["declared"] == "True"]
    assert declared == [
        ("S+ item", "S-", "sampled", "10"), ("S+ item", "other skips", "sampled", "10"),
        ("S+ session", "S-", "full", "10"), ("S-", AWKWARD, "sampled", "10"),
    ]  # fmt: skip
    assert len(rows["arms"]) == (5 + 3) * 3 * 4
    assert sum(r["interval"] == "sessions alone" for r in rows["arms"]) == 3 * 3 * 4
    own = [r for r in rows["groups"] if (r["arm"], r["than"]) == ("S+ item", "S-")]
    assert sum(int(r["sessions"]) for r in own if r["grouping"] == "context type") == 1200
    assert [r["grouping"] for r in own][-1] == "skip gap"


def test_the_best_configuration_is_the_finalist_that_validation_prefers(confirmed):
    """S+ item, whose mean over the seeds is the highest; in a form that training takes."""
    config = from_flat(read_toml(confirmed / "best.toml"))
    assert (config.loss.alpha, config.loss.context, config.learning_rate) == (1.0, "item", 0.0005)
    assert "highest mean HR@10 over the confirming seeds" in (confirmed / "report.md").read_text()


def test_the_note_has_the_answer_the_figure_and_the_settings(confirmed, folder):
    """For who only browses the tracker; what is not confirmed says so."""
    text = note(confirmed)
    assert "**Not shown to be due to these skips: S+ item beats S-" in text
    assert "report/figures/claims.png" in text
    assert "Best settings: those of S+ item." in text
    assert "<" not in text.replace("&lt;", "")
    assert "Nothing is confirmed yet." in note(folder)


def test_settings_of_the_released_code_come_with_what_it_does_besides(tmp_path):
    """Where an arm has its negatives; nowhere else."""
    fake = FakeStudy()
    fake.add(0.44, fixed={"negative_scope": "released"}, alpha=0.5, learning_rate=0.001)
    write_report(fake.study, tmp_path / "report")
    assert "padding is attended to" in (tmp_path / "report" / "report.md").read_text()
    other = FakeStudy()
    other.add(0.44, alpha=0.5, learning_rate=0.001)
    write_report(other.study, tmp_path / "other")
    assert "padding is attended to" not in (tmp_path / "other" / "report.md").read_text()


def test_unequal_chances_are_said_at_the_top(tmp_path):
    """With and without confirming runs."""
    fake, runs = mixed_study(), confirming_study(unequal=True).run_all()
    fake.study.set_user_attr("recipe", fake.study.user_attrs["recipe"] | {"unequal": True})
    for name, more in (("plain", ()), ("confirmed", (runs.study, runs.read_ranks))):
        write_report(fake.study, tmp_path / name, *more)
        text = (tmp_path / name / "report.md").read_text()
        assert "unequal chances" in text.split("## Learning")[0]
        assert "Chances were unequal" in text


@pytest.mark.slow
def test_a_study_of_a_thousand_cells_fits_in_three_megabytes(tmp_path):
    """And is written within a minute or so of one core's time."""
    fake = FakeStudy(planned=1000)
    random = np.random.default_rng(0)
    for i in range(1000):
        alpha, learning_rate = 10 ** random.uniform(-2, 0), 10 ** random.uniform(-4, -2)
        fixed = {"context": ("session", "item")[i % 2]}
        fake.add(0.4 + 0.1 * random.random(), cell=f"c{i}", fixed=fixed, alpha=alpha, learning_rate=learning_rate)
    start = time.process_time()
    write_report(fake.study, tmp_path / "report")
    assert time.process_time() - start < 60
    assert (tmp_path / "report" / "report.html").stat().st_size < 3_000_000
