"""Configs are read strictly: every mistake is one line that says where and what was wanted."""

from pathlib import Path

import pytest
import yaml

from configs import ConfigError, Runtime, load
from configs.check import check
from configs.load import FOLDER, resolve
from configs.parse import parse
from configs.refresh import check_refresh
from storage import open_store
from tasks import Run

MICRO = yaml.safe_load((FOLDER / "micro.yaml").read_text())


def _with(**changes: object) -> dict[str, object]:
    raw = yaml.safe_load(yaml.safe_dump(MICRO))
    for place, value in changes.items():
        at = raw
        *parents, last = place.split("__")
        for part in parents:
            at = at[part]
        at[last] = value
    return raw


def test_every_shipped_config_is_valid() -> None:
    names = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    assert "micro" in names
    for name in names:
        raw = parse((FOLDER / f"{name}.yaml").read_bytes(), name)
        if "campaign" in raw:
            check_refresh(raw, name)
        else:
            check(raw, name)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"sft__epochz": 3}, "sft.epochz: unknown key; did you mean 'epochs'?"),
        ({"nam": "x"}, "nam: unknown key; did you mean 'name'?"),
        ({"sft__epochs": "three"}, "sft.epochs: "),
        ({"sft__method": "sftt"}, "no method 'sftt'"),
        ({"sft__config": {"colour": 1}}, "method sft has no setting 'colour'"),
        ({"online__preset": "llama3"}, "no preset 'llama3'"),
        ({"online__preset": "A" * 5000}, "no preset 'AAAA"),
        ({"sft__config": {"colour" * 900: 1}}, "method sft has no setting 'colour"),
        ({"rewards__safety__config": {"safety_weight": "A" * 5000}}, "safety_weight must be float, found 'AAAA"),
        ({"runtime__slots": 10**30}, "runtime.slots: "),
        ({"runtime__threads": 5000}, "runtime.threads: "),
        ({"sample__seed": 3}, "sample.seed: not here"),
        ({"sample__k": 0}, "sample.k: "),
        ({"sft__optimizer": {"learning_rate": float("nan")}}, "sft.optimizer.learning_rate: "),
        ({"data__prompts": [{"world": "prompts", "path": "x"}]}, "exactly one of world, path, hub"),
        ({"data__prompts": [{"hub": "a/b"}]}, "needs revision"),
        ({"base": {}}, "exactly one of pretrain, adopt"),
        ({"rewards": {}}, "need a reward model"),
    ],
)
def test_mistake_is_told_in_one_line(changes: dict[str, object], wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(_with(**changes), "x.yaml")
    assert wanted in str(caught.value)
    assert str(caught.value).startswith("x.yaml: ")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b"a: 1\na: 2\n", "'a' twice"),
        (b"\xff\xfe", "not UTF-8"),
        (b"- 1\n", "want a mapping"),
        (b"a: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
        (b"a: [\n", "not valid YAML"),
        (b"x" * (1 << 21), "bytes"),
        (b"1: 2\n", "is not a text"),
        (b"a: &a [x]\nb: [" + b"*a," * 300 + b"]\n", "aliases"),
    ],
)
def test_broken_yaml_is_told_in_one_line(text: bytes, wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "x.yaml")
    assert wanted in str(caught.value) and "\n" not in str(caught.value)


def test_missing_config_names_what_is_near() -> None:
    with pytest.raises(ConfigError, match="did you mean micro"):
        load("mikro")


def test_missing_data_file_is_told_before_any_work(tmp_path: Path) -> None:
    raw = _with(data__prompts=[{"path": "no/such.jsonl"}])
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError, match=r"no/such\.jsonl: no such file"):
        load(tmp_path / "c.yaml")


def test_bytes_of_local_data_are_part_of_the_campaign(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(_with(data__prompts=[{"path": str(file)}])))
    digests = []
    for text in ('{"prompt": "a"}\n', '{"prompt": "b"}\n', '{"prompt": "a"}\n'):
        file.write_text(text)
        digests.append(load(tmp_path / "c.yaml").data.prompts[0].sha256)
    assert digests[0] == digests[2] != digests[1]


def test_rounds_get_the_campaigns_sections_and_seed() -> None:
    campaign = load("micro", seed=3)
    first = campaign.rounds[0]
    assert first.version == "v1" and first.sample is not None and first.sample.seed == 3
    assert first.sample.limits == campaign.limits
    assert first.sample.round == 1 and campaign.rounds[1].annotate == "none"


def test_a_preset_sets_the_loop_where_the_file_does_not() -> None:
    raw = _with(online={"preset": "ppo-max", "batch_size": 64})
    online = resolve(check(raw, "x")).rounds[-1].online
    assert online is not None
    # ppo-max: 128 rollouts, minibatches of 32, a language-model term; the file has the last word
    assert (online.batch_size, online.minibatch_size, online.ptx_weight) == (64, 32, 0.1)
    with pytest.raises(ConfigError, match=r"rounds\[1\].online, preset ppo-max: .* multiple of minibatch_size 32"):
        resolve(check(_with(online={"preset": "ppo-max", "batch_size": 72, "k": 1}), "x"))


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("seed: 17", "seed: -5", "seed: .*greater than or equal to 0"),
        ("  prompts: [{world: prompts, count: 3000}]\n", "", "data.prompts: none given"),
        ("  documents: [{world: documents, count: 40000}]\n", "", "data.documents: none given"),
        ("held_out: 0.2", "held_out: 0.0", "data.held_out: 0 leaves no prompt"),
        ("annotate: {annotator: gold,", "annotate: {annotator: dataset,", "data.preferences: none given"),
        ("sft: {method", "sft: [1}{method", r"not valid YAML: line \d+, column \d+: "),
    ],
)
def test_what_the_stages_will_lack_is_said_before_any_work(tmp_path: Path, old: str, new: str, wanted: str) -> None:
    text = (FOLDER / "tiny.yaml").read_text()
    assert old in text
    if "dataset" in new:
        text = text.replace("annotate: {annotator: gold, prompts: 2300, temperatures: [0.8, 1.1]}}", "}")
        text = text.replace("{method: rejection, }", "{method: rejection}")
    (tmp_path / "c.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=wanted) as found:
        load(tmp_path / "c.yaml")
    assert "\n" not in str(found.value)


def test_a_run_can_stop_only_where_there_is_something() -> None:
    assert load("micro").stops() == ("v0", "r1-rewards", "v1", "r2-rewards", "v2")
    with pytest.raises(ConfigError, match="until 'v9': micro can stop at v0, r1-rewards, v1"):
        Run(load("micro"), open_store("file:///nowhere"), Runtime(), mode="plan", until="v9")
