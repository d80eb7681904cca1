"""Recipes as keywords, flags and files."""

import dataclasses

import pytest

from jaxkd.recipes.recipe import as_flags, given, plain, read_yaml, required, to_yaml
from jaxkd.recipes.text import TextRecipe

SMALL = TextRecipe(to="out", student="s", data=("a.jsonl",), options={"beta": 0.5})


def test_a_file_says_all_there_is(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml("text", SMALL))
    said = read_yaml(path)
    assert said.pop("recipe") == "text"
    assert said == plain(SMALL)
    assert {*said} == {field.name for field in dataclasses.fields(TextRecipe)}


def test_what_a_file_says_as_flags():
    said = {
        "steps": 5,
        "data": ["a", "b"],
        "control": False,
        "options": {"beta": 0.5},
        "optimizer": {"learning_rate": "1e-3"},
        "length": None,
    }
    expected = "--steps 5 --data a b --no-control --options beta 0.5"
    expected += " --optimizer.learning-rate 1e-3 --length None"
    assert " ".join(as_flags(TextRecipe, said, "file")) == expected


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"stepps": 1}, r"file: unknown field 'stepps': did you mean 'steps'"),
        ({"optimizer": {"rate": 1}}, r"'optimizer.rate'.*optimizer.learning_rate"),
        ({"optimizer": 1}, "optimizer has fields, got 1"),
        ({"data": [["a"]]}, "data is nested"),
        ({1: 2}, "unknown field '1'"),
        ({"optimizer": {None: 2}}, "unknown field 'optimizer.None'"),
    ],
    ids=lambda x: "",
)
def test_what_a_file_cannot_say(said, message):
    with pytest.raises(ValueError, match=message):
        list(as_flags(TextRecipe, said, "file"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is no YAML"),
        ("- 1", "holds no fields"),
        ("", "holds no fields"),
        ("steps: 2020-99-99", "recipe.yaml is no YAML: month"),
        (f"steps: {'9' * 5000}", "recipe.yaml is no YAML"),
    ],
    ids=["half", "list", "empty", "date", "digits"],
)
def test_a_file_that_is_none(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_yaml(path)
    with pytest.raises(FileNotFoundError, match="--print-config"):
        read_yaml(tmp_path / "none.yaml")


def test_keywords():
    assert required(TextRecipe) == ["to", "student", "data"]
    assert given(TextRecipe, SMALL, {"steps": 3}).steps == 3
    with pytest.raises(ValueError, match="student, data must be given"):
        given(TextRecipe, None, {"to": "x"})
    with pytest.raises(ValueError, match="unknown argument 'stepps'"):
        given(TextRecipe, SMALL, {"stepps": 3})
    wrong = {"steps": (0, 10**30), "seed": (-1, 2**63), "epochs": (0.0, 1e308)}
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError, match=f"{name} must be (0|1|above 0)"):
                given(TextRecipe, SMALL, {name: value})


@pytest.mark.parametrize("field", ["steps", "optimizer"])
def test_anchors_that_stand_for_gigabytes_are_refused_in_few_words(field, tmp_path):
    parts = [f"&x{i} [{', '.join(9 * [f'*x{i - 1}'])}]" for i in range(1, 12)]
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{field}: [{', '.join(['&x0 [a]', *parts])}]")
    with pytest.raises(ValueError, match=f"{field} (is nested|has fields)") as error:
        list(as_flags(TextRecipe, read_yaml(path), "file"))
    assert len(str(error.value)) < 200
