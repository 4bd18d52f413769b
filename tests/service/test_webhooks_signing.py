"""What a webhook is signed with, and how long a receiver may ask to be left alone."""

from __future__ import annotations

import base64
import email.utils

import pytest

from service.errors import SettingsError
from service.webhooks import MAX_RETRY_AFTER, parse_secrets, retry_after_seconds, sign
from tests.service.test_jobs import START

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


def test_the_signature_of_the_specification() -> None:
    (secret,) = parse_secrets("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signature = sign(
        [secret],
        identity="msg_p5jXN8AQM9LWM0D4loKWxJek",
        timestamp=1614265330,
        body=b'{"test": 2432232314}',
    )
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    "text", ["secret", "whsec_", "whsec_!!!!", "whsec_c2hvcnQ=", SECRET + ",x",
             "whsec_" + base64.b64encode(bytes(65)).decode()]
)  # fmt: skip
def test_secrets_that_are_refused(text: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse_secrets(text)
    assert "c2hvcnQ" not in str(error.value)


def test_no_secret_is_fine() -> None:
    assert parse_secrets("") == ()


def test_retry_after_as_it_is_written() -> None:
    def seconds(value: str | None) -> float:
        return retry_after_seconds(value, now=START)

    assert seconds(" 7 ") == 7
    assert seconds(email.utils.formatdate(START + 90, usegmt=True)) == 90
    assert seconds(email.utils.formatdate(START - 90, usegmt=True)) == 0
    assert seconds("9" * 400) == MAX_RETRY_AFTER
    for nothing in (None, "", "soon", "-5", "1.5", "\u0663", "Mon, 99 Foo 2020 00:00:00 GMT"):
        assert seconds(nothing) == 0
