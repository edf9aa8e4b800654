"""The theme that is sent is the one that Streamlit itself would send, made once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from streamlit import config
from streamlit.proto.NewSession_pb2 import CustomThemeConfig
from streamlit.runtime import app_session

from app.theme_once import NAME, install, once

ORIGINAL = getattr(app_session, NAME)
ORIGINAL = getattr(ORIGINAL, "__wrapped__", ORIGINAL)
SECTIONS = ("theme", "theme.light", "theme.dark", "theme.sidebar", "theme.light.sidebar", "theme.dark.sidebar")


@pytest.fixture
def untouched() -> Iterator[None]:
    setattr(app_session, NAME, ORIGINAL)
    yield
    setattr(app_session, NAME, ORIGINAL)


def test_each_section_is_as_streamlit_makes_it_and_is_made_once() -> None:
    asked: list[str] = []

    def counted(msg: CustomThemeConfig, section: str = "theme") -> None:
        asked.append(section)
        ORIGINAL(msg, section)

    quick = once(counted)
    for _ in range(2):
        for section in SECTIONS:
            whole, made = CustomThemeConfig(), CustomThemeConfig()
            ORIGINAL(whole, section)
            quick(made, section)
            assert made == whole
    assert asked == list(SECTIONS)
    assert config.get_option("theme.base") == "dark", "the console's own settings are what is compared"


def test_a_section_without_settings_stays_unset_in_its_message() -> None:
    quick = once(lambda msg, section="theme": None)
    found = CustomThemeConfig()
    quick(found.light, "theme.light")
    assert not found.HasField("light")


@pytest.mark.usefixtures("untouched")
def test_the_pinned_streamlit_has_the_function_that_is_replaced_and_it_is_replaced_once() -> None:
    assert install()
    assert not install()


@pytest.mark.usefixtures("untouched")
def test_where_streamlit_has_another_function_nothing_is_replaced() -> None:
    setattr(app_session, NAME, lambda message: None)
    assert not install()
