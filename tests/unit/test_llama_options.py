"""llama-server's options: rendering, and checks against the recorded help of a real binary."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.llama_environment import (
    PlannedInstance,
    instance_environment,
)
from ansible_collections.kloros.llm.plugins.module_utils.llama_help import (
    ServerOption,
    parse_help,
)
from ansible_collections.kloros.llm.plugins.module_utils.llama_option_check import help_findings
from ansible_collections.kloros.llm.plugins.module_utils.llama_options import (
    MANAGED,
    extra_findings,
)
from ansible_collections.kloros.llm.plugins.module_utils.systemd_env import (
    render_env_file,
    split_args,
)
from hypothesis import given
from hypothesis import strategies as st

HELP = (Path(__file__).parent / "data/llama-server-help-v0.5.0-dev.txt").read_text(encoding="utf-8")
OPTIONS = parse_help(HELP)
BY_FLAG = {flag: option for option in OPTIONS for flag in option.flags}
LIVE = "llama_instances.live"


def planned(**changes: object) -> PlannedInstance:
    """A plain CPU instance, with changes."""
    instance: dict[str, object] = {
        "name": "live",
        "model_path": "/srv/models/smollm2.gguf",
        "aliases": ["smollm2:135m", "a-short-name"],
        "host": "127.0.0.1",
        "port": 8080,
        "gpus": [],
        "context_tokens": 4096,
        "slots": 2,
        "kv_cache": "q8_0",
        "gpu_layers": "all",
        "cpu_moe_layers": 0,
        "split_mode": None,
        "main_gpu": None,
        "tensor_split": [],
        "mmproj_path": None,
        "draft_model_path": None,
        "lora": [],
        "embeddings": False,
        "rerank": False,
        "metrics": True,
        "api_key": False,
        "threads": None,
        "extra": {},
    }
    return {**instance, **changes}  # type: ignore[typeddict-item]  # the changes are per test


def checked(extra: dict[str, object], options: list[ServerOption] = OPTIONS) -> list[str]:
    """What the checks against the binary say about `extra`, in one line a finding."""
    findings = help_findings(LIVE, instance_environment(planned(extra=extra)), options)
    return [
        f"{finding['key']}: {finding['found']} | {finding['needed']} | {finding['cure']}"
        for finding in findings
    ]


# --- parse_help ----------------------------------------------------------------------------------


def test_every_option_of_the_real_help_is_parsed() -> None:
    option_lines = [line for line in HELP.splitlines() if re.match(r"--?[A-Za-z]", line)]
    assert len(OPTIONS) == len(option_lines) == 255
    for option, line in zip(OPTIONS, option_lines, strict=True):
        assert line.startswith(option.flags[0])


def test_every_flag_of_the_real_help_is_parsed() -> None:
    # Beside a description, what stands before it is padded to 40 columns.
    headers = [
        line[:40] if line[37:40] == "   " else line
        for line in HELP.splitlines()
        if re.match(r"--?[A-Za-z]", line)
    ]
    words = [word for header in headers for word in re.split(r"[,\s]+", header)]
    assert {word for word in words if word.startswith("-")} == BY_FLAG.keys()
    assert len(BY_FLAG) == sum(len(option.flags) for option in OPTIONS)


def test_every_variable_of_the_real_help_is_parsed() -> None:
    in_text = re.findall(r"\(env: (\w+)\)", HELP)
    parsed = [variable for option in OPTIONS for variable in option.env]
    assert len(in_text) == 148
    assert set(in_text) <= set(parsed)
    assert set(re.findall(r"LLAMA_ARG_[A-Z0-9_]+", HELP)) <= set(parsed)
    # The rest are the negated forms that arg.cpp accepts beside those that the help names.
    assert all("LLAMA_ARG_NO_" in variable for variable in set(parsed) - set(in_text))
    assert len(parsed) == len(set(parsed))


def test_a_negated_form_has_its_own_variable_only_beside_a_positive_one() -> None:
    assert BY_FLAG["--no-perf"].env == ("LLAMA_ARG_PERF", "LLAMA_ARG_NO_PERF")
    assert BY_FLAG["-nocb"].env == ("LLAMA_ARG_CONT_BATCHING", "LLAMA_ARG_NO_CONT_BATCHING")
    assert BY_FLAG["--no-host"].env == ("LLAMA_ARG_NO_HOST",)
    assert BY_FLAG["--model"].env == ("LLAMA_ARG_MODEL",)


@pytest.mark.parametrize(
    ("flag", "flags", "value_count", "values"),
    [
        ("--help", ("-h", "--help", "--usage"), 0, ()),
        ("--no-webui", ("--ui", "--webui", "--no-ui", "--no-webui"), 0, ()),
        ("-fa", ("-fa", "--flash-attn"), 1, ("on", "off", "auto")),
        ("--cpu-strict", ("--cpu-strict",), 1, ("0", "1")),
        ("--poll", ("--poll",), 1, ()),
        ("--split-mode", ("-sm", "--split-mode"), 1, ("none", "layer", "row", "tensor")),
        ("--device", ("-dev", "--device"), 1, ()),
        ("-ot", ("-ot", "--override-tensor"), 1, ()),
        ("-fitt", ("-fitt", "--fit-target"), 1, ()),
        ("--control-vector-layer-range", ("--control-vector-layer-range",), 2, ()),
        (
            "--cache-type-v",
            ("-ctv", "--cache-type-v"),
            1,
            ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"),
        ),
        (
            "--load-mode",
            ("-lm", "--load-mode"),
            1,
            ("auto", "none", "mmap", "mlock", "mmap+mlock", "dio"),
        ),
        (
            "--reasoning-format",
            ("--reasoning-format",),
            1,
            ("none", "deepseek", "deepseek-legacy", "auto"),
        ),
        ("--log-verbosity", ("-lv", "--verbosity", "--log-verbosity"), 1, ()),
        ("--reasoning-effort", ("--reasoning-effort",), 1, ()),
    ],
)
def test_an_option_is_read_with_its_values(
    flag: str, flags: tuple[str, ...], value_count: int, values: tuple[str, ...]
) -> None:
    option = BY_FLAG[flag]
    assert (option.flags, option.value_count, option.values) == (flags, value_count, values)
    assert option.takes_value == (value_count > 0)


def test_options_that_the_binary_only_refuses_are_marked() -> None:
    assert {option.flags[0] for option in OPTIONS if option.removed} == {
        "--draft",
        "--draft-min",
        "--spec-ngram-size-n",
        "--spec-ngram-size-m",
        "--spec-ngram-min-hits",
    }


@given(st.text())
def test_any_text_is_parsed_without_an_error(text: str) -> None:
    assert all(option.flags for option in parse_help(text))


def test_the_table_of_managed_options_matches_the_real_binary() -> None:
    for managed in MANAGED.values():
        option = BY_FLAG[managed.flags[-1]]
        assert set(option.flags) == set(managed.flags)
        variables = [name for name in option.env if not name.startswith("LLAMA_ARG_NO_")]
        assert variables == ([managed.variable] if managed.variable else [])


# --- instance_environment ------------------------------------------------------------------------


def test_a_cpu_instance_is_rendered() -> None:
    assert instance_environment(planned()) == {
        "LLAMA_ARG_MODEL": "/srv/models/smollm2.gguf",
        "LLAMA_ARG_ALIAS": "smollm2:135m",
        "LLAMA_ARG_HOST": "127.0.0.1",
        "LLAMA_ARG_PORT": "8080",
        "LLAMA_ARG_CTX_SIZE": "8192",
        "LLAMA_ARG_N_PARALLEL": "2",
        "LLAMA_ARG_CACHE_TYPE_K": "q8_0",
        "LLAMA_ARG_CACHE_TYPE_V": "q8_0",
        "LLAMA_ARG_DEVICE": "none",
        "LLAMA_ARG_FIT": "off",
        "LLAMA_ARG_CONTEXT_SHIFT": "1",
        "LLAMA_ARG_ENDPOINT_METRICS": "1",
    }


@pytest.mark.parametrize(
    ("extra", "argument"),
    [
        ({"context-shift": False}, "--no-context-shift"),
        ({"context-shift": True}, "--context-shift"),
        ({"no-context-shift": True}, "--no-context-shift"),
    ],
)
def test_an_answer_goes_on_where_the_context_is_full_unless_the_wish_says_otherwise(
    extra: dict[str, object], argument: str
) -> None:
    assert instance_environment(planned())["LLAMA_ARG_CONTEXT_SHIFT"] == "1"
    wished = instance_environment(planned(extra=extra))
    assert "LLAMA_ARG_CONTEXT_SHIFT" not in wished
    assert split_args(wished["LLAMA_EXTRA_ARGS"]) == [argument]
    assert help_findings(LIVE, wished, OPTIONS) == []


@pytest.mark.parametrize("kind", ["embeddings", "rerank"])
def test_a_text_to_embed_may_fill_a_slot(kind: str) -> None:
    """llama-server computes it in one micro-batch, and refuses a longer one."""
    variables = instance_environment(planned(**{kind: True}))
    assert variables["LLAMA_ARG_BATCH"] == variables["LLAMA_ARG_UBATCH"] == "4096"
    assert "LLAMA_ARG_CONTEXT_SHIFT" not in variables
    wished = instance_environment(planned(**{kind: True}, extra={"ubatch-size": 1024}))
    assert "LLAMA_ARG_UBATCH" not in wished
    assert wished["LLAMA_ARG_BATCH"] == "4096"
    wished = instance_environment(planned(**{kind: True}, extra={"batch-size": 1024}))
    assert "LLAMA_ARG_BATCH" not in wished
    assert not {"LLAMA_ARG_BATCH", "LLAMA_ARG_UBATCH"} & instance_environment(planned()).keys()


def test_gpus_are_named_by_bus_order_and_counted_from_zero() -> None:
    variables = instance_environment(planned(gpus=["GPU-11d0", "GPU-5a1e"]))
    assert variables["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert variables["CUDA_VISIBLE_DEVICES"] == "GPU-11d0,GPU-5a1e"
    assert variables["LLAMA_ARG_DEVICE"] == "CUDA0,CUDA1"
    assert variables["LLAMA_ARG_N_GPU_LAYERS"] == "all"
    assert variables["LLAMA_ARG_FIT"] == "off"


def test_the_server_fits_nothing_itself() -> None:
    assert instance_environment(planned())["LLAMA_ARG_FIT"] == "off"
    some = instance_environment(planned(gpus=["GPU-1"], gpu_layers="20", cpu_moe_layers=4))
    assert some["LLAMA_ARG_FIT"] == "off"
    assert some["LLAMA_ARG_N_GPU_LAYERS"] == "20"
    assert some["LLAMA_ARG_N_CPU_MOE"] == "4"


def test_a_projector_stays_off_gpus_that_the_instance_has_not() -> None:
    on_gpu = instance_environment(planned(gpus=["GPU-1"], mmproj_path="/m/p.gguf"))
    assert on_gpu["LLAMA_ARG_MMPROJ"] == "/m/p.gguf"
    assert "LLAMA_ARG_MMPROJ_OFFLOAD" not in on_gpu
    on_cpu = instance_environment(planned(mmproj_path="/m/p.gguf"))
    assert on_cpu["LLAMA_ARG_MMPROJ_OFFLOAD"] == "0"


def test_a_draft_model_names_its_type_unless_the_wish_does() -> None:
    variables = instance_environment(planned(draft_model_path="/srv/models/draft.gguf"))
    assert variables["LLAMA_ARG_SPEC_DRAFT_MODEL"] == "/srv/models/draft.gguf"
    assert variables["LLAMA_ARG_SPEC_TYPE"] == "draft-simple"
    wished = instance_environment(
        planned(draft_model_path="/srv/models/d.gguf", extra={"spec-type": "draft-eagle3"})
    )
    assert "LLAMA_ARG_SPEC_TYPE" not in wished
    assert "LLAMA_ARG_SPEC_TYPE" not in instance_environment(planned())


def test_switches_are_rendered_only_when_on() -> None:
    on = instance_environment(planned(embeddings=True, rerank=True, metrics=True, threads=4))
    off = instance_environment(planned(metrics=False))
    switches = {"LLAMA_ARG_EMBEDDINGS", "LLAMA_ARG_RERANKING", "LLAMA_ARG_ENDPOINT_METRICS"}
    assert {name for name in switches if on.get(name) == "1"} == switches
    assert on["LLAMA_ARG_THREADS"] == "4"
    assert not (switches | {"LLAMA_ARG_THREADS"}) & off.keys()


def test_a_key_leaves_no_trace() -> None:
    assert instance_environment(planned(api_key=True)) == instance_environment(planned())


@pytest.mark.parametrize(
    ("adapters", "arguments"),
    [
        ([], []),
        ([{"path": "/m/a.gguf", "scale": 1.0}], ["--lora", "/m/a.gguf"]),
        (
            [{"path": "/m/a:b.gguf", "scale": 1}, {"path": '/m/c,"d".gguf', "scale": 1.0}],
            ["--lora", '/m/a:b.gguf,"/m/c,""d"".gguf"'],
        ),
        (
            [{"path": "/m/a.gguf", "scale": 1.0}, {"path": "/m/b,c.gguf", "scale": 0.5}],
            ["--lora-scaled", '/m/a.gguf:1.0,"/m/b,c.gguf:0.5"'],
        ),
    ],
)
def test_adapters_keep_their_order_and_scale(
    adapters: list[dict[str, object]], arguments: list[str]
) -> None:
    variables = instance_environment(planned(lora=adapters))
    assert split_args(variables.get("LLAMA_EXTRA_ARGS", "")) == arguments
    assert help_findings(LIVE, variables, OPTIONS) == []


def test_extra_is_rendered_in_the_order_of_its_names_whatever_the_inventorys() -> None:
    extra = {
        "temp": 0.5,
        "reverse-prompt": ["two words", 'a "quote"'],
        "warmup": False,
        "cache-ram": -1,
        "jinja": True,
        "chat-template-kwargs": '{"a": "b c"}',
    }
    variables = instance_environment(planned(extra=extra))
    assert variables == instance_environment(planned(extra=dict(reversed(extra.items()))))
    assert split_args(variables["LLAMA_EXTRA_ARGS"]) == [
        *("--cache-ram", "-1"),
        *("--chat-template-kwargs", '{"a": "b c"}'),
        "--jinja",
        *("--reverse-prompt", "two words", "--reverse-prompt", 'a "quote"'),
        *("--temp", "0.5"),
        "--no-warmup",
    ]
    assert help_findings(LIVE, variables, OPTIONS) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"aliases": ["a,b"]}, "comma"),
        ({"model_path": ""}, "LLAMA_ARG_MODEL of instance live would be empty"),
        ({"lora": [{"path": "/m/a:b.gguf", "scale": 0.5}]}, "colon"),
    ],
)
def test_what_llama_server_would_misread_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        instance_environment(planned(**changes))


SCALARS = st.one_of(
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="ascii", min_codepoint=32, max_codepoint=126)),
)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{2,8}(-[a-z0-9]{1,5}){0,2}", fullmatch=True),
        st.one_of(st.booleans(), SCALARS, st.lists(SCALARS, min_size=1, max_size=3)),
        max_size=6,
    )
)
def test_extra_that_passes_its_check_renders_into_an_env_file(extra: dict[str, object]) -> None:
    if extra_findings(f"{LIVE}.extra", extra):
        return
    variables = instance_environment(planned(extra=extra))
    assert render_env_file(variables, "header")
    flags = [name if value is not False else f"no-{name}" for name, value in extra.items()]
    arguments = split_args(variables.get("LLAMA_EXTRA_ARGS", ""))
    assert {f"--{flag}" for flag in flags} <= set(arguments)
    assert all(variables.values())


# --- extra_findings ------------------------------------------------------------------------------


def spellings() -> list[tuple[str, str]]:
    """Every way to write a managed option, with the managed option's name."""
    return [
        (written, name)
        for name, managed in MANAGED.items()
        for spelling in (*managed.flags, managed.variable)
        if spelling
        for written in sorted(
            {
                spelling,
                spelling.lstrip("-"),
                spelling.lstrip("-").replace("-", "_"),
                f"no-{spelling.lstrip('-')}",
            }
        )
    ]


@pytest.mark.parametrize(("written", "name"), spellings())
def test_every_spelling_of_a_managed_option_is_refused(written: str, name: str) -> None:
    (finding,) = extra_findings(f"{LIVE}.extra", {written: "x"})
    assert finding["level"] == "error"
    assert finding["key"] == f"{LIVE}.extra.{written}"
    assert MANAGED[name].flags[0] in finding["found"]
    assert MANAGED[name].instead in finding["cure"]


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("api-key", "`api_key`"),
        ("--api-key", "`api_key`"),
        ("LLAMA_API_KEY", "`api_key`"),
        ("LLAMA_ARG_API_KEY", "`api_key`"),
        ("hf-token", "`gguf_models_hf_token`"),
        ("hft", "`gguf_models_hf_token`"),
        ("HF_TOKEN", "`gguf_models_hf_token`"),
    ],
)
def test_a_secret_is_refused_and_not_repeated(name: str, instead: str) -> None:
    (finding,) = extra_findings(f"{LIVE}.extra", {name: "s3cr3t-value"})
    assert "would show in the env file" in finding["found"]
    assert instead in finding["cure"]
    assert "s3cr3t-value" not in str(finding)


@pytest.mark.parametrize(
    ("extra", "found", "cure"),
    [
        ({"--temp": 1}, "starts with a dash", "write `temp` instead"),
        ({"top_k": 1}, "'top_k'", "write `top-k` instead"),
        ({"LLAMA_ARG_TEMPERATURE": 1}, "'LLAMA_ARG_TEMPERATURE'", "long form"),
        ({"temp 1": True}, "'temp 1'", "long form"),
        ({"": 1}, "''", "long form"),
        ({8: 1}, "a number as the key", "write the option's name"),
        ({"version": True}, "exit", "take it out"),
        ({"grammar": None}, "null as its value", "leave the key out"),
        ({"chat-template-kwargs": {"a": 1}}, "a mapping as its value", "one quoted string"),
        ({"temp": []}, "an empty list", "leave the key out"),
        ({"reverse-prompt": ["a", True]}, "a boolean in the list", "give one of these"),
        ({"reverse-prompt": [["a"]]}, "a list in the list", "give one of these"),
        ({"grammar": "a\nb"}, "a line break", "`grammar-file`"),
        ({"reverse-prompt": ["a\tb"]}, "control character", "file"),
    ],
)
def test_what_cannot_be_rendered_is_refused_with_a_cure(
    extra: dict[str, object], found: str, cure: str
) -> None:
    (finding,) = extra_findings(f"{LIVE}.extra", extra)
    assert found in finding["found"]
    assert cure in finding["cure"]


def test_everything_wrong_is_said_at_once() -> None:
    findings = extra_findings("i.extra", {"model": 1, "temp": None, "jinja": True, "-x": 1})
    assert [finding["key"] for finding in findings] == [
        "i.extra.model",
        "i.extra.temp",
        "i.extra.-x",
    ]


# --- help_findings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gpus": ["GPU-1", "GPU-2"], "threads": 8, "embeddings": True},
        {"gpus": ["GPU-1"], "gpu_layers": "9", "rerank": True, "metrics": False},
        {"gpus": ["GPU-1"], "cpu_moe_layers": 7, "mmproj_path": "/m/m.mmproj.gguf"},
        {"draft_model_path": "/m/d.gguf", "lora": [{"path": "/m/a.gguf", "scale": 0.3}]},
        {"extra": {"flash-attn": "on", "spec-type": "ngram-simple,ngram-mod", "temp": -1}},
        {"extra": {"load-mode": "mmap+mlock", "reverse-prompt": ["a", "-"], "slots": False}},
    ],
)
def test_what_is_rendered_is_known_to_the_real_binary(changes: dict[str, object]) -> None:
    assert help_findings(LIVE, instance_environment(planned(**changes)), OPTIONS) == []


@pytest.mark.parametrize(
    ("extra", "key", "said"),
    [
        ({"flash-atn": "on"}, "flash-atn", "no option --flash-atn | .*--flash-attn"),
        ({"mlock": True}, "mlock", "no option --mlock"),
        ({"tb": 4}, "tb", "short form .* --threads-batch"),
        ({"draft-max": 8}, "draft-max", "no longer has .*use --spec-draft-n-max"),
        (
            {"flash-attn": True},
            "flash-attn",
            'no value .* one of on, off, auto .* quote a word: "on"',
        ),
        ({"flash-attn": False}, "flash-attn", "false, but .* one of on, off, auto .* quote `on`"),
        ({"swa-full": False}, "swa-full", "false, but .* leave it out"),
        ({"jinja": "yes"}, "jinja", "1 value for a switch"),
        ({"temp": True}, "temp", "no value"),
        ({"load-mode": "mmpa"}, "load-mode", "'mmpa', .* one of auto, none, mmap"),
        ({"spec-type": "ngram-mod,x"}, "spec-type", "'x', which"),
        ({"tags": ["a", "b"]}, "tags", "last one only .*with commas"),
        ({"control-vector-layer-range": "1 2"}, "control-vector-layer-range", "takes 2 values"),
        ({"gpt-oss-20b-default": True}, "gpt-oss-20b-default", "replaces the instance's model"),
    ],
)
def test_an_option_that_this_binary_would_refuse_is_found(
    extra: dict[str, object], key: str, said: str
) -> None:
    assert extra_findings(f"{LIVE}.extra", extra) == []
    (line,) = checked(extra)
    assert line.startswith(f"{LIVE}.extra.{key}: ")
    assert re.search(said, line)


def test_one_bad_option_does_not_hide_or_blame_its_neighbours() -> None:
    lines = checked({"jinja": "yes", "temp": True, "top-k": 40, "zzz": "a b", "warmup": False})
    assert [line.split(":")[0].rpartition(".")[2] for line in lines] == ["jinja", "temp", "zzz"]


def test_an_alias_that_only_the_binary_knows_is_refused_too() -> None:
    newer = HELP.replace("-m,    --model FNAME    ", "-m,    --model, --model-file FNAME    ", 1)
    extra: dict[str, object] = {"model-file": "/m/other.gguf"}
    assert extra_findings(f"{LIVE}.extra", extra) == []
    (line,) = checked(extra, parse_help(newer))
    assert re.search("--model-file is another name .*set `model`", line)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("LLAMA_ARG_API_KEY", "x", "no variable LLAMA_ARG_API_KEY.*LLAMA_ARG_API_KEY_FILE"),
        ("LLAMA_ARG_DRAFT_MAX", "8", "no longer has"),
        ("LLAMA_ARG_CTX_SIZE", "", "empty value"),
        ("LLAMA_ARG_CACHE_TYPE_K", "q3_0", "'q3_0', which"),
        ("LLAMA_ARG_EMBEDDINGS", "yes", "'yes' for a switch"),
    ],
)
def test_a_variable_that_this_binary_would_refuse_or_ignore_is_found(
    variable: str, value: str, said: str
) -> None:
    (finding,) = help_findings(LIVE, {variable: value}, OPTIONS)
    assert finding["key"] == f"{LIVE}.{variable}"
    assert re.search(said, f"{finding['found']} {finding['needed']} {finding['cure']}")


def test_an_older_binary_without_a_managed_variable_is_found() -> None:
    older = [option for option in OPTIONS if "LLAMA_ARG_FIT" not in option.env]
    (finding,) = help_findings(LIVE, instance_environment(planned()), older)
    assert "no variable LLAMA_ARG_FIT" in finding["found"]


def test_other_programs_variables_are_left_alone() -> None:
    assert help_findings(LIVE, {"CUDA_VISIBLE_DEVICES": "0", "HOME": "/"}, OPTIONS) == []


@given(st.lists(st.text(), max_size=5))
def test_any_arguments_are_checked_without_an_error(arguments: list[str]) -> None:
    environment = {"LLAMA_EXTRA_ARGS": " ".join(arguments)}
    assert all(finding["cure"] for finding in help_findings(LIVE, environment, OPTIONS))
