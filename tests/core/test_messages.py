"""Chat messages are plain dictionaries with the roles that chat templates know."""

from typing import get_args

import pytest

from palaestra.core import messages


@pytest.mark.parametrize("role", get_args(messages.Role))
def test_each_role_has_a_constructor_that_gives_a_plain_dictionary(role: str) -> None:
    message = getattr(messages, role)("text")
    assert message == {"role": role, "content": "text"}
    assert type(message) is dict
