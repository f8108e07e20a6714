"""params.yaml: strict, typed, and every mistake is one sentence."""

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.params import Model, Params, Section, load_params, parse_params

ROOT = Path(__file__).parents[1]
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))


def change(**sections) -> dict:
    data = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, values in sections.items():
        data[section] |= values
    return data


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.stem)
def test_presets_are_complete_and_every_line_has_its_comment(preset):
    params = load_params(preset)
    assert params.fetch.source == preset.stem
    written = yaml.safe_load(preset.read_text())

    def missing(model, data, path=""):
        for name in type(model).model_fields:
            yield from [path + name] if name not in data else []
            value = getattr(model, name)
            if isinstance(value, Section) and name in data:
                yield from missing(value, data[name], f"{path}{name}.")

    assert not list(missing(params, written))
    for line in preset.read_text().splitlines():
        assert not line.strip() or "#" in line or re.fullmatch(r"[\w ]+:", line), line


def test_there_is_a_preset_for_every_source():
    assert {p.stem for p in PRESETS} == {"demo", "folder", "inria", "open_buildings"}
    assert (ROOT / "params.yaml").read_text() == (ROOT / "presets/demo.yaml").read_text()


def test_every_architecture_is_listed_where_one_is_chosen():
    listed = (ROOT / "params.yaml").read_text().partition("  model:")[2].partition("architecture:")[0]
    assert set(re.findall(r"[\w+]+", listed)) >= set(get_args(Model.model_fields["architecture"].annotation))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"train": {"epoch": 3}}, "unknown parameter train.epoch; did you mean epochs?"),
        ({"train": {"epochs": 0}}, "train.epochs is 0, but it must be greater than or equal to 1"),
        ({"train": {"loss": {"dise": 1.0}}}, "unknown parameter train.loss.dise; did you mean dice?"),
        ({"train": {"loss": {"dice": 0}}}, "train.loss: every weight is 0; give one of cross_entropy, dice"),
        ({"train": {"loss": {"dice": -1}}}, "train.loss.dice is -1, but it must be greater than or equal to 0"),
        ({"train": {"init": "models/all"}}, "train.init is 'models/all', but a stage writes there, and DVC deletes it"),
        ({"train": {"init": "./models/x/../without-a/"}}, "start from a copy elsewhere"),
        ({"fetch": {"cities": [False]}}, 'fetch.cities.0 is False, but it must be a valid string; quote it, "NO"'),
        ({"fetch": {"cities": [2024]}}, 'quote it, "2024", if it is a name'),
        ({"fetch": {"cities": ["austin@0.3m"]}}, "'austin@0.3m' cannot be a folder's name and a stage's"),
        ({"fetch": {"cities": ["a:b"]}}, "cannot be a folder's name"),
        ({"fetch": {"cities": ["-v"]}}, "cannot be a folder's name"),
        ({"fetch": {"cities": [".hidden"]}}, "cannot be a folder's name"),
        ({"fetch": {"cities": ["a" * 120]}}, "cannot be a folder's name"),
        ({"fetch": {"cities": ["Pooled"]}}, "fetch.cities: Pooled means something else in the metrics"),
        ({"fetch": {"cities": ["mean_city"]}}, "give the city another name"),
        ({"fetch": {"cities": ["Austin", "austin"]}}, "Austin and austin differ by case only"),
        ({"fetch": {"cities": ["Köln", "Ko\u0308ln"]}}, "differ by case only"),
        ({"train": {"learning_rate": "fast"}}, "train.learning_rate is 'fast'"),
        ({"tile": {"size": 100}}, "tile.size is 100, but it must be a multiple of 32"),
        ({"tile": {"gsd": -0.3}}, "tile.gsd is -0.3"),
        ({"fetch": {"source": "inra"}}, "'demo', 'folder', 'inria' or 'open_buildings'"),
        ({"fetch": {"cities": ["a", "b", "a"]}}, "fetch.cities names a twice; name each city once"),
        ({"fetch": {"cities": ["../etc"]}}, "'../etc' cannot be a folder's name"),
        ({"fetch": {"cities": []}}, "fetch.cities is [], but it must have at least 1 item, not 0"),
        ({"fetch": {"cities": ["a\nb"]}}, "cannot be a folder's name"),
        ({"fetch": {"cities": ["a'; ls '"]}}, "cannot be a folder's name"),
        ({"fetch": {"cities": ["$HOME"]}}, "cannot be a folder's name"),
        ({"fetch": {"scenes": 3}}, "fetch.scenes is 3, but it must be all, or a list of scene numbers such as [1, 2]"),
        ({"fetch": {"overrides": {"tinrof": {}}}}, "tinrof is not one of fetch.cities; did you mean tinroof?"),
        ({"fetch": {"overrides": {"tinroof": {"bnads": [1]}}}}, "overrides.tinroof.bnads; did you mean bands?"),
        ({"fetch": {"overrides": {"tinroof": {"bands": []}}}}, "fetch.overrides.tinroof.bands is []"),
        ({"fetch": {"overrides": {"tinroof": {"range": [5, 5]}}}}, "range is [5, 5], but it must be two values"),
        ({"fetch": {"overrides": {"tinroof": {"range": [200, 5]}}}}, "the lower first"),
        (
            {"fetch": {"overrides": {"tinroof": {"range": [float("nan"), 1]}}}},
            "range.0 is nan, but it must be a finite",
        ),
        ({"fetch": {"overrides": {"tinroof": {"gsd": 1.0}}}}, "tinroof.gsd: source demo reads none; take it out"),
        ({"train": {"epochs": True}}, "train.epochs is True, but it must be a valid integer"),
        ({"train": {"compile": 1}}, "train.compile is 1, but it must be a valid boolean"),
        ({"train": {"learning_rate": float("inf")}}, "train.learning_rate is inf, but it must be a finite number"),
        ({"evaluate": {"overlap": 1.0}}, "less than 0.9"),
    ],
)
def test_a_mistake_is_a_sentence(wrong, sentence):
    with pytest.raises(InputError) as error:
        parse_params(change(**wrong))
    assert sentence in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("city", ["tyrol-e", "St. Gallen", "Köln", "मुंबई", "Washington D.C.", "new_york (2)", "3rd"])
def test_a_city_is_called_as_people_call_it(city):
    assert parse_params(change(fetch={"cities": [city]})).fetch.cities == [city]


def test_a_loss_that_is_not_named_is_off():
    assert parse_params(change(train={"loss": {"lovasz": 1}})).train.loss.model_dump() == {
        "cross_entropy": 0, "dice": 0, "focal": 0, "lovasz": 1, "hinge": 0,
    }  # fmt: skip


def test_a_copy_of_a_trained_model_may_be_the_start():
    for start in ("start", "models/pretrained", "/elsewhere/models/all"):
        assert parse_params(change(train={"init": start})).train.init == start


def test_a_nested_mistake_names_the_nearest_key_of_its_own_section():
    with pytest.raises(InputError, match="train.model.encodr; did you mean encoder\\?"):
        data = change()
        data["train"]["model"]["encodr"] = "resnet18"
        parse_params(data)


def test_a_key_written_twice_is_refused_and_a_power_of_ten_is_a_number(tmp_path):
    path, text = tmp_path / "params.yaml", (ROOT / "params.yaml").read_text()
    path.write_text(text.replace("  epochs: 18 ", "  epochs: 18\n  epochs: 3 "))
    with pytest.raises(InputError, match="not valid YAML: epochs is written twice.* line"):
        load_params(path)
    path.write_text(text.replace("learning_rate: 0.002 ", "learning_rate: 2e-3 "))
    assert load_params(path).train.learning_rate == 0.002


@pytest.mark.parametrize("text", ["", "- 1\n", "a: [", "fetch: 3\n", "\x00"])
def test_what_is_no_parameter_file_is_a_sentence(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="params.yaml"):
        load_params(path)


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from([(s, k) for s, f in Params.model_fields.items() for k in f.annotation.model_fields]), values)
def test_any_value_is_taken_or_refused_in_words(place, value):
    section, key = place
    data = change()
    data.setdefault(section, {})[key] = value
    try:
        assert isinstance(parse_params(data), Params)
    except InputError as error:
        assert key in str(error) or section in str(error)


@pytest.mark.parametrize("edges", [[500, 150, 50], [50, 50, 150]])
def test_sizes_that_do_not_rise_are_refused(edges):
    """A building would be counted twice, or nowhere."""
    rising = re.escape(str(sorted({float(edge) for edge in edges})))
    with pytest.raises(InputError, match=f"evaluate.size_bins is .*sizes must rise from bin to bin; write {rising}"):
        parse_params(change(evaluate={"size_bins": edges}))
