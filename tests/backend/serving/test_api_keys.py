"""API keys: where they come from and whom they let in."""

from __future__ import annotations

import pytest

from backend.errors import ConfigError
from backend.serving.api_keys import ApiKeys, collect_api_keys


def test_keys_come_from_options_environment_and_file_together(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# of the team\nfourth\n\n  fifth  \n")
    keys = collect_api_keys(("first", "second,third"), file, {"MILLRACE_API_KEYS": "sixth seventh"})
    for key in ("first", "second", "third", "fourth", "fifth", "sixth", "seventh"):
        assert keys.lets_in(f"Bearer {key}")
    assert not keys.lets_in("Bearer # of the team")


@pytest.mark.parametrize("header", [None, "", "Bearer ", "Bearer firs", "Bearer first ", "Basic first", "first",
                                    "Bearer first,second", "Bearer sécret", b"Bearer \xff"])
def test_a_wrong_header_is_not_let_in(header):
    assert not ApiKeys.of(["first", "second"]).lets_in(header)


def test_the_scheme_is_written_in_any_case_and_bytes_do_as_well():
    keys = ApiKeys.of(["first"])
    assert keys.lets_in("bearer first") and keys.lets_in(b"BEARER first")


def test_without_keys_everybody_is_let_in():
    keys = collect_api_keys((), None, {})
    assert not keys and keys.lets_in(None)


def test_keys_cannot_be_read_out_of_what_holds_them():
    assert "first" not in repr(ApiKeys.of(["first"]))


@pytest.mark.parametrize("content", ["", "# nothing but a comment\n\n"])
def test_a_file_without_a_key_does_not_open_the_server(tmp_path, content):
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(ConfigError, match="holds no API key"):
        collect_api_keys((), file, {})


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ConfigError, match="missing"):
        collect_api_keys((), tmp_path / "missing", {})


def test_a_key_that_no_header_carries_is_refused():
    with pytest.raises(ConfigError, match="printable"):
        ApiKeys.of(["schlüssel"])


@pytest.mark.parametrize("value", ["", " , "])
def test_an_option_without_a_key_does_not_open_the_server(value):
    with pytest.raises(ConfigError, match="holds no key"):
        collect_api_keys(("first", value), None, {})
