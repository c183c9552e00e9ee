"""The evaluation part of a run's page."""

import pytest
from streamlit.testing.v1 import AppTest

from core import evaluation as scores
from core.references import Confusion
from core.run_spec import EvaluationSpec, Instructions
from core.runs import Run
from pages.parts import evaluation, session

GOLD = EvaluationSpec(reference_column="gold")


def page(run_id):
    from pages.parts import evaluation, session

    evaluation.draw(session.jobs().open(run_id))


def open_page(run):
    return AppTest.from_function(page, default_timeout=20, kwargs={"run_id": run.run_id}).run()


@pytest.fixture
def answered(workspace, tmp_path):
    """Makes runs of these references whose rows have these answers; None is an error."""

    def make(references, answers, spec=GOLD) -> Run:
        path = tmp_path / "table.csv"
        rows = "".join(f'"{text}",x\n' for text in references)
        path.write_text(f"gold,text\n{rows}", encoding="utf-8")
        run = session.jobs().stage(path, instructions=Instructions(template="{{ text }}"))
        run.update(evaluation=spec)
        with run.connect() as connection:
            for row, text in enumerate(answers):
                connection.execute(
                    "INSERT INTO results (_row, status, answer, finished_at) VALUES (?, ?, ?, 1)",
                    [row, "ok" if text else "error", text],
                )
        return run

    return make


def texts(elements):
    return " | ".join(str(element.value).replace("\\", "") for element in elements)


def figures(app):
    return {metric.label: metric.value for metric in app.metric}


def test_labels_show_figures_with_their_interval_the_matrix_and_the_worst_rows(answered):
    references = ["yes", "no"] * 20
    answers = ["Yes.", "yes"] * 10 + ["Yes.", "no"] * 9 + [None, "maybe"]
    app = open_page(answered(references, answers))
    assert not app.exception
    # of 39: 19 yes and 9 no
    assert figures(app) == {"Normalised match": "71.8%", "Exact match": "23.1%"}
    shown = texts(app.caption)
    assert "39 answers scored against gold · 1 failed" in shown
    assert "95%: 56.4% to" in shown
    assert "n = 39" in shown
    assert "Accuracy 71.8%" in shown
    by_label, worst = (frame.value for frame in app.dataframe)
    assert list(by_label["Label"]) == ["no", "yes"]
    assert list(by_label["Recall"]) == [pytest.approx(9 / 20), 1]
    assert list(worst["Score"][:12]) == [0] * 11 + [1]
    assert worst["Row"][0] == 2
    assert (worst["Answer"][0], worst["Reference"][0]) == ("yes", "no")
    assert not app.exception


def test_the_metric_of_the_worst_rows_can_be_chosen(answered):
    app = open_page(answered(["1.5", "2.5", "3.5"], ["It is 1.5", "2.5", "4"]))
    assert list(app.dataframe[0].value["Score"]) == [0, 1, 1]
    app.selectbox(key=next(box.key for box in app.selectbox if box.key.endswith(":metric"))).select("exact")
    app.run()
    assert list(app.dataframe[0].value["Row"]) == [1, 3, 2]


def test_worst_rows_come_in_pages(answered):
    references = [f"{n} is the number of this sentence, which has many words" for n in range(60)]
    run = answered(references, [" ".join(text.split()[: 1 + n % 9]) for n, text in enumerate(references)])
    app = open_page(run)
    first = app.dataframe[0].value
    assert len(first) == 50
    app.session_state[f"evaluation:{run.run_id}:page:token_f1"] = 2
    app.run()
    second = app.dataframe[0].value
    assert len(second) == 10
    assert first["Score"].max() <= second["Score"].min()
    assert not set(first["Row"]) & set(second["Row"])


def test_a_reference_column_can_be_named_afterwards(answered):
    run = answered(["a", "b", "a"], ["a", "b", "b"], spec=None)
    app = open_page(run)
    assert not app.metric
    app.selectbox[0].select("gold")
    app.button[0].click().run()
    app.run()
    assert figures(app)["Normalised match"] == "66.7%"
    assert run.spec.evaluation == GOLD


def test_a_large_run_is_scored_when_somebody_says_so(answered, monkeypatch):
    monkeypatch.setattr(evaluation, "ASK_ROWS", 2)
    run = answered(["a", "b", "a"], ["a", "b", "b"])
    app = open_page(run)
    assert not app.metric
    (button,) = [button for button in app.button if button.label == "Score the answers to 3 rows"]
    assert "about" in button.help
    button.click().run()
    assert figures(app)["Normalised match"] == "66.7%"
    with run.connect() as connection:
        assert scores.kept(connection, GOLD) is not None
    assert figures(open_page(run)) == figures(app)


def test_a_run_without_answers_says_so(answered):
    app = open_page(answered(["a", "b"], []))
    assert "No row has both" in texts(app.info)
    assert not app.exception


def test_a_reference_column_that_is_gone_is_explained(answered):
    app = open_page(answered(["a"], ["a"], spec=EvaluationSpec(reference_column="truth")))
    assert "no column 'truth'" in texts(app.error)


def test_markup_in_names_is_shown_letter_by_letter():
    chart = evaluation.confusion_chart(Confusion(("<b>1</b>", "2"), ((3, 0, 1), (0, 2, 0))), "#123456")
    heatmap, numbers = chart.data
    assert chart.layout.yaxis.ticktext == ("&lt;b&gt;1&lt;/b&gt;", "2")
    assert [list(row) for row in heatmap.z] == [[0.75, 0, 0.25], [0, 1, 0]]
    assert heatmap.text[0][2] == "&lt;b&gt;1&lt;/b&gt; answered as <i>other</i>: 1 row, 25.0%"
    # numbers stand where the rows of a matrix are counted from the top
    assert list(zip(numbers.x, numbers.y, numbers.text, strict=True)) == [
        (0, 0, "3"),
        (2, 0, "1"),
        (1, 1, "2"),
    ]
    assert numbers.textfont.color == "#123456"
    assert chart.layout.yaxis.range[0] > chart.layout.yaxis.range[1]
