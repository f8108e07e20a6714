"""params.yaml: strict, typed, and every mistake is one sentence."""

import re
from pathlib import Path
from typing import get_args, get_origin

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from pipeline import __main__ as main
from pipeline.errors import InputError
from pipeline.params import CityOverride, Fetch, Model, Params, Section, load_params, parse_params
from pipeline.presets import find, full, one_line

ROOT = Path(__file__).parents[1]
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))


def name(path: Path) -> str:
    return path.stem


def change(**sections) -> dict:
    data = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, values in sections.items():
        data[section] |= values
    return data


def fields(section=Params, path=""):
    """Every key of the schema with its pydantic field, those of sections inside
    and of a city's override too.
    """
    for name, field in section.model_fields.items():
        yield path + name, field
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from fields(kind, f"{path}{name}.")


@pytest.mark.parametrize(("key", "field"), [*fields()], ids=[key for key, _ in fields()])
def test_every_parameter_is_documented(key, field):
    assert field.description


@pytest.mark.parametrize(
    "path", [*PRESETS, ROOT / "benchmarks/real_cities.yaml", ROOT / "tests/tiny.yaml"], ids=name
)
def test_a_preset_says_only_what_differs_and_what_for(path):
    params, said = load_params(path), yaml.safe_load(path.read_text())
    assert re.match(r"# .*(minutes|hours|day).*\n", path.read_text())

    def repeated(section, values, prefix=""):
        for key, value in values.items():
            if isinstance(now := getattr(section, key), Section):
                yield from repeated(now, value, f"{prefix}{key}.")
            elif now == type(section).model_fields[key].default:
                yield prefix + key

    assert not list(repeated(params, said))


@pytest.mark.parametrize("path", PRESETS, ids=name)
def test_the_whole_file_of_a_preset_has_every_parameter_and_the_same_values(path):
    written = yaml.safe_load(full(path))
    assert parse_params(written) == load_params(path)

    def keys(values, prefix=""):
        for key, value in values.items():
            yield prefix + key
            yield from keys(value, f"{prefix}{key}.") if isinstance(value, dict) else ()

    of_cities = ("fetch.overrides.", "attack.physics.sun.")
    assert {key for key in keys(written) if not key.startswith(of_cities)} == {
        key for key, _ in fields() if not key.startswith(of_cities)
    }


def test_the_params_yaml_of_the_repository_is_the_demo(capfdbinary, monkeypatch):
    monkeypatch.chdir(ROOT)
    main.preset("demo")
    assert capfdbinary.readouterr().out == (ROOT / "params.yaml").read_bytes()


def test_there_is_a_preset_for_every_source():
    sources = {load_params(path).fetch.source for path in PRESETS}
    assert (
        sources == set(get_args(Fetch.model_fields["source"].annotation)) <= {*map(name, PRESETS)}
    )


def test_a_misspelt_key_of_a_preset_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        (ROOT / "presets/town.yaml").read_text() + "attack: {tils: 3}\n"
    )
    with pytest.raises(
        InputError, match="mine.yaml: unknown parameter attack.tils; did you mean tiles?"
    ):
        full(find(str(tmp_path / "mine.yaml")))


def test_an_unknown_preset_names_its_nearest_and_all_others(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(
        InputError,
        match="no preset inra; did you mean inria\\? There are demo, folder, .* and town",
    ):
        find("inra")
    monkeypatch.chdir(tmp_path)
    # elsewhere, the package's own
    assert find("demo").read_bytes() == (ROOT / "presets/demo.yaml").read_bytes()


def test_what_is_long_stands_above_and_what_a_city_may_say_is_explained(tmp_path):
    overrides = "  overrides: {my-town: {gsd: 0.1, range: [0, 0.00005], building: 1}}\n"
    path = tmp_path / "mine.yaml"
    path.write_text(
        (ROOT / "presets/town.yaml").read_text().replace("tile:\n", f"{overrides}tile:\n")
    )
    text = full(path)
    assert yaml.safe_load(text)["fetch"]["overrides"] == {
        "my-town": {"gsd": 0.1, "range": [0, 0.00005], "building": 1}
    }  # only what was said
    above = text.partition("  overrides:")[0].rpartition("precision:")[2]
    assert re.findall(r"# - (\w+):", above) == list(CityOverride.model_fields)
    assert all(len(line) <= 120 for line in text.splitlines())


def test_every_architecture_is_listed_where_one_is_chosen():
    listed = (
        (ROOT / "params.yaml").read_text().partition("  model:")[2].partition("architecture:")[0]
    )
    assert set(re.findall(r"[\w+]+", listed)) >= set(
        get_args(Model.model_fields["architecture"].annotation)
    )


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"train": {"epoch": 3}}, "unknown parameter train.epoch; did you mean epochs?"),
        ({"train": {"epochs": 0}}, "train.epochs is 0, but it must be greater than or equal to 1"),
        (
            {"train": {"loss": {"dise": 1.0}}},
            "unknown parameter train.loss.dise; did you mean dice?",
        ),
        (
            {"train": {"loss": {"dice": 0}}},
            "train.loss: every weight is 0; give one of cross_entropy, dice",
        ),
        (
            {"train": {"loss": {"dice": -1}}},
            "train.loss.dice is -1, but it must be greater than or equal to 0",
        ),
        (
            {"train": {"init": "models/all"}},
            "train.init is 'models/all', but a stage writes there, and DVC deletes it",
        ),
        ({"train": {"init": "./models/x/../folds/without-a/"}}, "start from a copy elsewhere"),
        (
            {"fetch": {"cities": [False]}},
            'fetch.cities.0 is False, but it must be a valid string; quote it, "NO"',
        ),
        (
            {"fetch": {"cities": [2024]}},
            'quote it, "2024" or however it is written there, if it is a name',
        ),
        (
            {"fetch": {"cities": ["austin@0.3m"]}},
            "'austin@0.3m' cannot be a folder's name and a stage's",
        ),
        ({"fetch": {"cities": ["a:b"]}}, "cannot be a folder's name"),
        ({"fetch": {"cities": ["-v"]}}, "cannot be a folder's name"),
        ({"fetch": {"cities": [".hidden"]}}, "cannot be a folder's name"),
        ({"fetch": {"cities": ["a" * 120]}}, "aaa…' cannot be a folder's name"),
        (
            {"fetch": {"cities": ["Pooled"]}},
            "fetch.cities: Pooled means something else in the metrics",
        ),
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
        (
            {"fetch": {"scenes": 3}},
            "fetch.scenes is 3, but it must be all, or a list of scene numbers such as [1, 2]",
        ),
        (
            {"fetch": {"overrides": {"tinrof": {}}}},
            "tinrof is not one of fetch.cities; did you mean tinroof?",
        ),
        (
            {"fetch": {"overrides": {"tinroof": {"bnads": [1]}}}},
            "overrides.tinroof.bnads; did you mean bands?",
        ),
        (
            {"fetch": {"overrides": {"tinroof": {"bands": []}}}},
            "fetch.overrides.tinroof.bands is []",
        ),
        (
            {"fetch": {"overrides": {"tinroof": {"range": [5, 5]}}}},
            "range is [5, 5], but it must be two values",
        ),
        ({"fetch": {"overrides": {"tinroof": {"range": [200, 5]}}}}, "the lower first"),
        (
            {"fetch": {"overrides": {"tinroof": {"range": [float("nan"), 1]}}}},
            "range.0 is nan, but it must be a finite",
        ),
        (
            {"fetch": {"overrides": {"tinroof": {"gsd": 1.0}}}},
            "tinroof.gsd: source demo reads none; take it out",
        ),
        ({"train": {"epochs": True}}, "train.epochs is True, but it must be a valid integer"),
        ({"train": {"compile": 1}}, "train.compile is 1, but it must be a valid boolean"),
        (
            {"train": {"learning_rate": float("inf")}},
            "train.learning_rate is inf, but it must be a finite number",
        ),
        ({"evaluate": {"overlap": 1.0}}, "less than 0.9"),
        (
            {"attack": {"patch": 320}},
            "params.yaml: attack.patch is 320, but the tiles under attack are 64 pixels wide "
            "(attack.crop, tile.size); take a smaller patch, or 0",
        ),
        (
            {"attack": {"crop": 640, "patch": 160}},
            "attack.patch is 160, but the tiles under attack are 128 pixels wide",
        ),
        (
            {"privacy": {"private": {"crop": 160}}},
            "privacy.private.crop is 160, but a record is a tile and tile.size 128; take",
        ),
    ],
)
def test_a_mistake_is_a_sentence(wrong, sentence):
    with pytest.raises(InputError) as error:
        parse_params(change(**wrong))
    assert sentence in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "city", ["tyrol-e", "St. Gallen", "Köln", "मुंबई", "Washington D.C.", "new_york (2)", "3rd"]
)
def test_a_city_is_called_as_people_call_it(city):
    assert parse_params(change(fetch={"cities": [city]})).fetch.cities == [city]


@pytest.mark.parametrize(
    "city", ["1e3", "08", "0o17", "on", "NO", "2024", "1_000", "2020-01-01", "null"]
)
def test_a_word_that_is_written_is_read_as_that_word_by_dvc_too(city, tmp_path):
    """DVC reads YAML 1.2, where 1e3, 08 and 0o17 are numbers and on is a word."""
    text = f"[{one_line(city)}]"
    assert yaml.safe_load(text) == YAML(typ="safe").load(text) == [city]
    path = tmp_path / "params.yaml"
    path.write_text(
        re.sub(r"cities: .*", f"cities: {text}", (ROOT / "params.yaml").read_text(), count=1)
    )
    assert load_params(path).fetch.cities == [city]


@pytest.mark.parametrize("city", ["1e3", "08", "on", "2024"])
def test_a_city_that_is_a_number_to_dvc_is_to_be_quoted(city, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(
        re.sub(r"cities: .*", f"cities: [{city}]", (ROOT / "params.yaml").read_text(), count=1)
    )
    with pytest.raises(InputError, match="fetch.cities.0 is .* quote it"):
        load_params(path)


def test_a_record_of_a_whole_scene_holds_any_crop():
    parse_params(change(privacy={"private": {"crop": 160, "unit": "scene"}}))
    parse_params(change(attack={"crop": 640, "patch": 128}))


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
    path.write_text(re.sub(r"  epochs: (\d+) ", r"  epochs: \1\n  epochs: 3 ", text, count=1))
    with pytest.raises(InputError, match="not valid YAML: epochs is written twice.* line"):
        load_params(path)
    path.write_text(re.sub(r"learning_rate: \S+ ", "learning_rate: 3e-3 ", text, count=1))
    assert load_params(path).train.learning_rate == 0.003


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


@given(
    st.sampled_from(
        [(s, k) for s, f in Params.model_fields.items() for k in f.annotation.model_fields]
    ),
    values,
)
def test_any_value_is_taken_or_refused_in_words(place, value):
    section, key = place
    data = change()
    data.setdefault(section, {})[key] = value
    try:
        assert isinstance(parse_params(data), Params)
    except InputError as error:
        assert key in str(error) or section in str(error)


REPEATED = {
    "fetch.scenes": [1, 2, 1], "train.loggers": ["csv", "csv"],
    "attack.linf": [1, 1.0], "attack.l2": [0.5, 0.5], "attack.methods": ["pgd", "fgsm", "pgd"],
    "attack.physics.families": ["gain", "gain"],
    "certify.methods": ["smoothing", "smoothing"], "certify.smoothing.sigma": [0.05, 0.05],
    "certify.convex.radii": [1, 2, 2], "certify.lipschitz.radii": [0.1, 0.1],
    "generalize.seeds": [0, 0], "generalize.fractions": [1, 0.5, 1],
    "generalize.adaptation": ["fda", "fda"], "generalize.initialisations": ["random", "random"],
    "incremental.methods": ["ewc", "ewc"], "privacy.private.epsilon": [8, 8],
    "privacy.references": ["a", "a"], "few_labels.samples": [10, 10], "few_labels.budgets": [5, 5],
    "few_labels.strategies": ["random", "random"],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), REPEATED.items())
def test_what_stands_in_a_list_twice_is_refused(key, value):
    *sections, name = key.split(".")
    data = place = change()
    for section in sections:
        place = place[section]
    place[name] = value
    with pytest.raises(InputError) as error:
        parse_params(data)
    assert f"{key} is {value}, but " in str(error.value)
    assert str(error.value).endswith(
        "stands in it twice, and a copy measures nothing new; drop one"
    )


def test_every_list_is_held_to_it_or_has_a_rule_of_its_own():
    def listed(kind) -> bool:
        return get_origin(kind) is list or any(map(listed, get_args(kind)))

    lists = {key for key, field in fields() if listed(field.annotation)}
    own = {"fetch.cities", "evaluate.size_bins"}
    # a grey band read as three; layers of one width
    meant = {"tile.bands", "fetch.overrides.bands", "train.model.decoder_channels"}
    assert lists == REPEATED.keys() | own | meant


@pytest.mark.parametrize("edges", [[500, 150, 50], [50, 50, 150]])
def test_sizes_that_do_not_rise_are_refused(edges):
    """A building would be counted twice, or nowhere."""
    rising = re.escape(str(sorted({float(edge) for edge in edges})))
    with pytest.raises(
        InputError, match=f"evaluate.size_bins is .*sizes must rise from bin to bin; write {rising}"
    ):
        parse_params(change(evaluate={"size_bins": edges}))
