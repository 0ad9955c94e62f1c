import re
from pathlib import Path

import pytest

from palaestra.core.errors import ConfigError
from palaestra.learners.config import EnvConfig, load_recipe, packaged_recipes, recipe_to_data


def test_packaged_recipes_load_and_survive_a_round_trip_through_toml(tmp_path: Path) -> None:
    import tomli_w

    assert {"quickstart", "repair", "trace"} <= set(packaged_recipes())
    for name in packaged_recipes():
        recipe = load_recipe(name, ["seed=5"])
        path = tmp_path / f"{name}.toml"
        path.write_text(tomli_w.dumps(recipe_to_data(recipe)))
        assert load_recipe(str(path)) == recipe


def test_overrides_win_and_a_mix_is_replaced_whole() -> None:
    recipe = load_recipe("quickstart", ["grpo.steps=7", "env.levels=[1]", "demos.mix={careful=1.0}", "run=a b"])
    assert (recipe.grpo.steps, recipe.env.levels, dict(recipe.demos.mix)) == (7, (1,), {"careful": 1.0})
    assert recipe.run == "a b"


def test_a_pretrained_model_changes_prompts_and_sizes_but_not_overrides() -> None:
    scratch = load_recipe("quickstart")
    pretrained = load_recipe("quickstart", ["model=some/folder", "rollout.max_turn_tokens=99"])
    assert (scratch.env.prompt_style, pretrained.env.prompt_style) == ("compact", "full")
    assert pretrained.model.path == "some/folder"
    assert pretrained.rollout.max_turn_tokens == 99
    assert pretrained.rollout.max_context_tokens > scratch.rollout.max_context_tokens
    assert pretrained.sft.learning_rate < scratch.sft.learning_rate


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("grpo.stps=3", "unknown key 'grpo.stps'; did you mean 'steps'?"),
        ("grpo.steps=many", "grpo.steps='many'"),
        ("grpo.clip_low=-1", r"grpo.clip_low=-1.0: must be in \(0, 1\]"),
        ("steps", "write key=value"),
        ("demoss.n=3", "did you mean 'demos'"),
        ("demos.mix={careful=-1}", "shares must be >= 0"),
        ("processes=3", "must be a multiple of processes=3"),
        ("grpo=3", "expected a table"),
        ('stages=["grpo"]', "name the folder of an SFT policy"),
    ],
)
def test_mistakes_are_one_line(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load_recipe("quickstart", [override])
    assert "\n" not in str(caught.value)


def test_unknown_and_damaged_recipes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'quickstart'"):
        load_recipe("quikstart")
    with pytest.raises(ConfigError, match="cannot read recipe"):
        load_recipe(str(tmp_path / "missing.toml"))
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_recipe(str(tmp_path / "bad.toml"))


def test_every_documented_variant_is_a_recipe_that_differs() -> None:
    document = (Path(__file__).parents[2] / "docs" / "quickstart.md").read_text()
    rows = re.findall(r"^\| (.+?) \| `(grpo\..+?)` \|$", document, re.MULTILINE)
    recipes = {name: load_recipe("quickstart", keys.split()).grpo for name, keys in rows}
    assert len(recipes) == 7
    assert len(set(recipes.values())) == 7


def test_a_recipe_does_not_train_on_the_tasks_that_it_is_judged_by() -> None:
    keywords = EnvConfig(keywords={"tasks": "mine.jsonl"}).environment()
    assert keywords["split_tasks"] is True
    assert "split_tasks" not in EnvConfig().environment()
    assert EnvConfig(keywords={"tasks": "mine.jsonl", "split_tasks": False}).environment()["split_tasks"] is False
