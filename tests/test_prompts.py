"""What a template may do, and what it says when it can't."""

import pytest

from core.errors import TemplateError, UnknownColumn
from core.prompts import Template, column_reference

COLUMNS = ["movie_title", "review_content", "评论", "review text", "n"]


def test_columns_by_name_and_by_row():
    template = Template('{{ movie_title }}: {{ row["review text"] }} {{ 评论 }}', COLUMNS)
    row = {"movie_title": "M", "review text": "good", "评论": "好"}
    assert template.render(row) == "M: good 好"
    assert template.variables == ("movie_title", "review text", "评论")


def test_variables_come_in_order_of_appearance():
    template = Template("{% if n %}{{ review_content }}{% endif %}{{ movie_title }}", COLUMNS)
    assert template.variables == ("n", "review_content", "movie_title")


def test_the_whole_row_uses_every_column():
    assert Template("{% for k, v in row.items() %}{{ k }}={{ v }};{% endfor %}", ["a", "b"]).variables == (
        "a",
        "b",
    )


def test_an_unknown_column_is_named_with_the_ones_there_are():
    with pytest.raises(UnknownColumn) as caught:
        Template("{{ titel }}", ["title", "text"])
    assert "'titel'" in str(caught.value)
    assert "title, text" in str(caught.value)


def test_an_unknown_column_through_row_is_found_too():
    with pytest.raises(UnknownColumn):
        Template('{{ row["titel"] }}', ["title"])


def test_a_name_with_a_space_gets_advice():
    with pytest.raises(TemplateError) as caught:
        Template("{{ review text }}", COLUMNS)
    assert 'row["a column"]' in str(caught.value)


def test_names_set_in_the_template_are_not_columns():
    assert Template("{% set t = movie_title %}{{ t }}", COLUMNS).variables == ("movie_title",)


def test_null_renders_as_nothing():
    assert Template("[{{ movie_title }}]", COLUMNS).render({"movie_title": None}) == "[]"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ movie_title.__class__ }}",
        "{{ row.__class__.__init__.__globals__ }}",
        "{{ 'a' * 1000000000 }}",
        "{{ 10 ** 1000000 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ movie_title.ljust(1000000000) }}",
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{{ movie_title.format(1) }}",
    ],
)
def test_the_sandbox_holds(source):
    with pytest.raises(TemplateError):
        Template(source, COLUMNS).render(dict.fromkeys(COLUMNS, "x"))


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(9) %}" * 3 + "{% endfor %}" * 3,
        "{% include 'x' %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_what_could_run_for_ever_is_refused_before_the_run(source):
    with pytest.raises(TemplateError):
        Template(source, COLUMNS)


@pytest.mark.parametrize("name", ["a", "评论", "review text", 'say "x"', "row", "1st", "for", "true", "a\\b"])
def test_column_reference_round_trip(name):
    template = Template(column_reference(name), [name])
    assert template.variables == (name,)
    assert template.render({name: "value"}) == "value"


def test_values_are_not_templates():
    assert Template("{{ n }}", COLUMNS).render({"n": "{{ 7 * 7 }}"}) == "{{ 7 * 7 }}"
