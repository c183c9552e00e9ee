"""The workbench as AppTest runs it: opened, waited for, its buttons."""

from pathlib import Path

from streamlit.testing.v1 import AppTest
from waiting import until as waited

from pages.parts import session

HOME = str(Path(__file__).parents[1] / "Home.py")


def opened(page=None):
    """The app with its engine ready, on the page of this name; without one on its first."""
    app = AppTest.from_file(HOME, default_timeout=30).run()
    until(app, lambda: session.runtime().status().phase == "ready")
    return app if page is None else turned_to(app, page)


def turned_to(app, page):
    app.switch_page(f"pages/{page}.py").run()
    assert not app.exception
    return app


def until(app, condition):
    """Wait for `condition`, then run the page, as its fragments would."""
    waited(condition, timeout_s=30)
    app.run()
    assert not app.exception


def button(app, label):
    return next(one for one in [*app.button, *app.sidebar.button] if one.label == label)
