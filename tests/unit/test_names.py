import pytest

from app.errors import InvalidInputError
from app.ids import MODEL_VERSION, new_id
from app.names import check_alias, check_name


@pytest.mark.parametrize("name", ["a", "0", "digits", "resnet-50.v1_b", "x" * 100])
def test_plain_names_pass_unchanged(name: str) -> None:
    assert check_name(name, "model") == name


@pytest.mark.parametrize(
    "name", ["", "x" * 101, "-a", ".a", "_a", "a b", "a@b", "a/b", "é", "a\n", "١"]
)
def test_other_names_are_refused_with_the_code_of_what_they_name(name: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_name(name, "dataset")
    assert caught.value.code == "dataset_name_invalid"


def test_name_that_looks_like_an_id_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="looks like an id"):
        check_name(new_id(MODEL_VERSION), "model")


def test_alias_of_digits_alone_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="version number") as caught:
        check_alias("12")
    assert caught.value.code == "alias_name_invalid"
    assert check_alias("v12") == "v12"
