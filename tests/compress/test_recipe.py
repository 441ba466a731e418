import json
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
import yaml

from pocketport.compress.recipe import Recipe, load_recipe, schema, shipped_recipes
from pocketport.errors import InputError, UsageError


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_load_and_fit_the_schema(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.description
    text = (resources.files("pocketport.compress.recipes") / f"{name}.yaml").read_text(encoding="utf-8")
    jsonschema.validate(yaml.safe_load(text), dict(schema()))


def test_the_shipped_schema_is_the_models() -> None:
    text = (resources.files("pocketport.compress.recipes") / "recipe.schema.json").read_text(encoding="utf-8")
    assert json.loads(text) == schema()


def test_an_empty_file_is_a_recipe_of_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, ""))
    assert recipe.name == "mine" and not recipe.rules_for("x86")


@pytest.mark.parametrize(
    ("text", "where", "fix"),
    [
        ("rulse: []", "rulse", "did you mean rules"),
        ("rules: [{schem: w8a8}]", "rules.0.schem", "did you mean scheme"),
        ("targets: {x86: {rule: []}}", "targets.x86.rule", "did you mean rules"),
        ("targets: {x86: {rules: [{algoritm: rtn}]}}", "algoritm", "did you mean algorithm"),
        ("rules: [{algorithm: gptqq}]", "rules.0.algorithm", "did you mean gptq"),
        ("rules: [{observer: minmax}]", "rules.0.observer", "did you mean min_max"),
        ("cache: int3", "cache", "did you mean int8"),
        ("targets: {x86: {cach: int8}}", "targets.x86.cach", "did you mean cache"),
        ("rules: [{scheme: w9a9}]", "rules.0.scheme", "correct"),
        ("version: 2", "version", "use 1"),
        ("- a list", "mine.yaml", "version: 1"),
    ],
)
def test_mistakes_name_the_key_and_the_nearest(tmp_path: Path, text: str, where: str, fix: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(written(tmp_path, text))
    assert where in caught.value.where and fix in caught.value.fix


def test_not_yaml_and_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not YAML"):
        load_recipe(written(tmp_path, "a: [b"))
    with pytest.raises(UsageError, match="did you mean default"):
        load_recipe("defualt")
    with pytest.raises(UsageError, match="can't be read"):
        load_recipe("nowhere/mine.yaml")


def test_rules_come_in_order_common_vendor_chip() -> None:
    recipe = Recipe.model_validate({
        "name": "r", "rules": [{"scheme": "w8a8"}],
        "targets": {"qualcomm/sm8650": {"rules": [{"scheme": "w4a16"}]}, "qualcomm": {"rules": [{"scheme": "w8a16"}]}},
    })  # fmt: skip
    assert [r.scheme for r in recipe.rules_for("qualcomm/sm8650@2.51")] == ["w8a8", "w8a16", "w4a16"]
    assert [r.scheme for r in recipe.rules_for("qualcomm/sm8550")] == ["w8a8", "w8a16"]
    assert [r.scheme for r in recipe.rules_for("x86")] == ["w8a8"]


def test_globs_match_component_op_and_name() -> None:
    recipe = Recipe.model_validate({"name": "r", "rules": [{"component": "pre*", "op": "Gemm", "name": "*.q_proj"}]})
    rule = recipe.rules[0]
    assert rule.matches("prefill", "Gemm", "layers.0.q_proj")
    assert not rule.matches("decode", "Gemm", "layers.0.q_proj")
    assert not rule.matches("prefill", "MatMul", "layers.0.q_proj")
    assert not rule.matches("prefill", "Gemm", "layers.0.k_proj")
