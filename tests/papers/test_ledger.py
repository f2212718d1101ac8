"""The ledger of claims in the docs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mesaopt.analysis import Estimate
from mesaopt.errors import RunError
from mesaopt.papers import ledger
from mesaopt.papers.claims import Claim, write_claims
from mesaopt.papers.reproduce import STUDIES, get_study
from mesaopt.papers.untrained import Untrained, write_untrained
from mesaopt.recipes import RECIPES

EXPLAINING = (*ledger.PAGES, "explanation/why-mesa-failed-elsewhere.md")
"""Pages on which claims that fail are explained."""
SHORTER = {"language"}
"""Studies that were run at a smaller scale than published: their pages say so."""


@pytest.fixture(scope="module")
def entries() -> dict[str, Any]:
    return json.loads((ledger.DOCS / ledger.FILE).read_text())


@pytest.mark.parametrize("name", ledger.PAGES)
def test_the_tables_of_the_docs_are_up_to_date(name: str, entries: dict[str, Any]) -> None:
    page = (ledger.DOCS / name).read_text()
    assert ledger.rewrite(page, entries) == page, "python -m mesaopt.papers.ledger writes them anew"


def test_every_study_is_in_the_docs_at_published_length(entries: dict[str, Any]) -> None:
    pages = "".join((ledger.DOCS / name).read_text() for name in ledger.PAGES)
    assert set(entries) == set(STUDIES)
    for study, parts in entries.items():
        assert pages.count(f"<!-- ledger: {study} -->") == 1
        ids = [claim["id"] for part in parts for claim in (*part["claims"], *part["waiting"])]
        assert len(ids) == len(set(ids))
        assert {claim["shown_in"] for part in parts for claim in part["claims"]} <= {
            "rounding",
            *(figure.name for figure in get_study(study).figures),
        }
    published = [part for study in set(entries) - SHORTER for part in entries[study]]
    for part in published:
        assert part["scale"] == "paper"
        for recipe, model in part["models"].items():
            assert model["steps"] == RECIPES[recipe].config.train.steps
    assert sum(len(part["claims"]) for part in published) >= 60


def test_claims_that_fail_are_explained_by_hand(entries: dict[str, Any]) -> None:
    text = "".join(ledger.hand_written((ledger.DOCS / name).read_text()) for name in EXPLAINING)
    judged = [c for parts in entries.values() for part in parts for c in part["claims"]]
    failed = [claim["id"] for claim in judged if not claim["passed"]]
    assert not [name for name in failed if f"`{name.split('/')[1]}`" not in text]


def _claim(name: str, measured: Estimate | float | None, **other: Any) -> Claim:
    facts = {"study": "core", "paper": "uncovering2023", "scale": "smoke", "shown_in": "weights"}
    limits = {"high": 1.0, "basis": "0.9 | published", "figure": "Fig. 1"}
    return Claim(
        name=name, statement=f"it is {name}", measured=measured, **facts, **limits, **other
    )


@pytest.mark.parametrize("noise", ["added", "factor"])
def test_a_table_says_limits_without_their_noise(noise: str) -> None:
    measured = _claim("small", Estimate(2.0, 0.5), noise=noise).to_json()
    assert "standard errors of 0.5" in measured["basis"]
    entry = {"scale": "smoke", "runs": None, "date": "", "commit": "", "machine": "", "models": {}}
    entry |= {"minutes": 1, "training_minutes": 0, "claims": [measured], "waiting": []}
    page = ledger.rewrite("<!-- ledger: core -->\n<!-- end of ledger -->", {"core": [entry]})
    assert "| 0.9 \\| published | 2 ± 0.5 |" in page


def test_a_table_has_every_claim_with_its_verdict(results: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(results, tmp_path / "results"))
    lsa_1 = ("lsa-1",)
    write_claims(folder, [_claim("small", 0.5, recipes=lsa_1), _claim("large", 2.0)])
    waiting = _claim("lost", None, recipes=("tf-7",))
    lacking = Untrained(figure="weights", recipes=("tf-7",), drawn=True, claims=(waiting,))
    write_untrained(folder, [lacking])
    study, entry = ledger.collect(folder)
    assert study == "core"
    page = ledger.rewrite("a\n<!-- ledger: core -->\n<!-- end of ledger -->\nb\n", {study: [entry]})
    steps = entry["models"]["lsa-1"]["steps"]
    length = f"`lsa-1`: {steps} of 3,500 steps, 2 seeds"
    rows = [line for line in page.splitlines() if line.startswith("| it is")]
    assert rows == [
        "| it is small; Fig. 1 (`small`) | 0.9 \\| published | 0.5 | at most 1 | holds | "
        + length
        + " |",
        "| it is large; Fig. 1 (`large`) | 0.9 \\| published | 2 | at most 1 | **fails** |  |",
        "| it is lost; Fig. 1 (`lost`) | 0.9 \\| published |  |  | not trained yet | `tf-7`: none |",
    ]
    assert ledger.rewrite(page, {study: [entry]}) == page
    assert ledger.hand_written(page) == "a\n\nb\n"
    summary = ledger.rewrite("<!-- ledger: summary -->\n<!-- end of ledger -->", {study: [entry]})
    assert "| `core` | 2 | 1 | 0 | 1 | 1 |" in summary
    trained = ledger.rewrite(page, {study: [entry | {"training_minutes": 120}]})
    assert ", after 2.0 hours of training in all, on" in trained
    zoo = ledger.rewrite(page, {study: [entry | {"runs": "the zoo", "training_minutes": 0}]})
    assert f", the zoo. Measured on {entry['date']}," in zoo
    assert f", in {entry['minutes']} minutes on" in zoo
    run = next((folder / "runs").iterdir())
    (run / "DONE").write_text('{"steps": 3, "seconds": 7200.0}')
    assert ledger.collect(folder)[1]["training_minutes"] == 120
    (run / "DONE").unlink()
    assert ledger.collect(folder)[1]["training_minutes"] == 0, "it diverged"
    (folder / "DONE").unlink()
    with pytest.raises(RunError, match="DONE"):
        ledger.collect(folder)


def test_figures_of_a_study_may_come_from_several_folders(results: Path) -> None:
    study, part = ledger.collect(results)
    figures = list(dict.fromkeys(claim["shown_in"] for claim in part["claims"]))
    first = [claim for claim in part["claims"] if claim["shown_in"] == figures[0]]
    others = [claim for claim in part["claims"] if claim["shown_in"] != figures[0]]
    again = part | {"commit": "newer", "claims": first}
    parts = ledger.merge([part], again)
    assert parts == [part | {"claims": others}, again]
    page = ledger.rewrite(f"<!-- ledger: {study} -->\n<!-- end of ledger -->", {study: parts})
    assert page.count(f"(`{figures[0]}`)") == 1
    assert page.index("commit `newer`") < page.index(f"(`{figures[0]}`)")
    assert page.index(f"(`{figures[1]}`)") < page.index("commit `newer`")
    assert ledger.merge(parts, part) == [part], "a part of which nothing is left is dropped"


def test_models_are_counted_by_their_recipes(results: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(results, tmp_path / "results"))
    index, (_, entry) = folder / "figures" / "index.json", ledger.collect(folder)
    assert {name: model["seeds"] for name, model in entry["models"].items()} == {
        "lsa-1": 2,
        "lsa-2-notebook": 1,
        "mesa-1": 1,
    }
    content = json.loads(index.read_text())
    earlier = [{k: v for k, v in run.items() if k != "recipe"} for run in content["runs"]]
    named = [run | {"name": f"run {number}"} for number, run in enumerate(content["runs"])]
    for runs in (earlier, named):
        index.write_text(json.dumps(content | {"runs": runs}))
        assert ledger.collect(folder)[1]["models"] == entry["models"]
