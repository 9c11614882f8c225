"""Files with credentials for NATS: what is taken from them, and what is said of wrong ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import nkeys
import pytest

from journal.contract import JournalError
from journal.nats.credentials import read
from journal.nats.url import parse
from tests.nats_auth import Key, Operator


def of(path: Path, option: str) -> tuple[dict[str, object], str]:
    found = read(parse(f"nats://h/n?{option}={path}"))
    return dict(found.options), found.text


@pytest.mark.parametrize(
    "form",
    [
        "{}",
        "{}\n",
        "  {}  \r\n",
        "-----BEGIN USER NKEY SEED-----\r\n{}\r\n------END USER NKEY SEED------\r\n",
    ],
)
def test_a_seed_in_each_form_that_tools_write(form: str, tmp_path: Path) -> None:
    user = Key()
    path = tmp_path / "nk"
    path.write_bytes(form.format(user.seed).encode())
    options, text = of(path, "nkey")
    assert options == {"nkeys_seed_str": user.seed}
    assert user.public in text and user.seed not in text


@pytest.mark.parametrize(
    "edit", [lambda text: text, lambda text: text.replace("\n", "\r\n"), str.rstrip]
)
def test_a_creds_file_with_other_line_ends(edit: Callable[[str], str], tmp_path: Path) -> None:
    user = Key()
    path = Operator().creds(tmp_path / "c", user)
    plain = str(of(path, "creds")[0]["user_credentials"])
    path.write_bytes(edit(path.read_text()).encode())
    options, text = of(path, "creds")
    assert str(options["user_credentials"]) == plain
    assert f"\n{user.seed}\n" in plain
    assert user.public in text and user.seed not in text and "expired" not in text


def test_an_expired_jwt_is_called_so(tmp_path: Path) -> None:
    path = Operator().creds(tmp_path / "c", expires=time.time() - 1)
    assert ", expired on " in of(path, "creds")[1]


def test_files_that_are_of_no_use_are_named_with_what_is_wrong(tmp_path: Path) -> None:
    operator, user = Operator(), Key()
    whole = operator.creds(tmp_path / "whole", user).read_text()
    jwt = next(line for line in whole.splitlines() if line.count(".") == 2)
    cases = {
        ("creds", whole.replace(jwt, "")): "no JWT",
        ("creds", whole.replace(user.seed, "")): "no nkey seed",
        ("creds", whole.replace(user.seed, Key().seed)): f"is of user {user.public}",
        ("creds", whole.replace(jwt, "abc.def.ghi")): "cannot be read",
        ("creds", ""): "no JWT",
        ("nkey", ""): "no nkey seed",
        ("nkey", "hello"): "no nkey seed",
        ("nkey", Key(nkeys.PREFIX_BYTE_ACCOUNT).seed): "no user's",
        ("nkey", user.public): "no nkey seed",
        ("nkey", "SU" + "7" * 56): "cannot be used",
    }
    for (option, content), expected in cases.items():
        path = tmp_path / "file"
        path.write_text(content)
        with pytest.raises(JournalError) as caught:
            of(path, option)
        assert expected in str(caught.value) and str(path) in str(caught.value)
        assert user.seed not in str(caught.value)
    for option in ("creds", "nkey"):
        with pytest.raises(JournalError, match="No such file"):
            of(tmp_path / "missing", option)
        with pytest.raises(JournalError, match="Is a directory"):
            of(tmp_path, option)


def test_what_the_url_itself_has() -> None:
    found = read(parse("nats://al:s3cret@h/n"))
    assert found.options == {"user": "al", "password": "s3cret"}
    token = read(parse("nats://t0ken@h/n"))
    assert token.options == {"token": "t0ken"}
    for each in (found, token):
        assert "s3cret" not in repr(each) and "t0ken" not in repr(each)
    assert read(parse("nats://h/n?cert=/c&key=/k")).options == {}
    assert "/c" in read(parse("nats://h/n?cert=/c&key=/k")).text
    assert "without credentials" in read(parse("nats://h/n")).text
