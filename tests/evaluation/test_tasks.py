"""Tasks: what their prompts are, letter by letter, how answers are scored, and what is said of bad data."""

import gzip
import inspect
import itertools
import json
import subprocess
import sys
import types

import gin
import pytest

from cascades import config
from cascades.errors import UserError
from cascades.evaluation import tasks
from cascades.evaluation.tasks import contract, hub

GSM8K = [
    {"question": "1 + 1?", "answer": "1 + 1 = 2.\n#### 2"},
    {"question": "2 * 600?", "answer": "It is <<2*600=1200>>.\n#### 1,200"},
    {"question": "3 - 4?", "answer": "Less.\n#### -1"},
]
SQUAD = [
    {"title": "Cats", "context": "A cat purrs.", "question": "What purrs?", "answers": ["A cat", "cat"]},
    {"title": "Dogs", "context": "A dog barks.", "question": "What purrs?", "answers": []},
]
HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'import math\n\n\ndef area(r):\n    """Of a disc."""\n',
    "canonical_solution": "    return math.pi * r * r\n",
    "test": "def check(candidate):\n    assert 3 < candidate(1) < 4\n",
    "entry_point": "area",
}
MBPP = [
    {
        "task_id": number,
        "prompt": f"Add {number}.",
        "code": f"def add(x):\n  return floor(x) + {number}",
        "test_imports": ["from math import floor"],
        "test_list": [f"assert add({at}) == {at + number}" for at in range(4)],
    }
    for number in (1, 2, 3)
]
SPEC = [
    {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]},
    {"question_id": 161, "category": "translation", "turns": ["Translate."], "reference": ["Übersetze."]},
]
FACTORIES = {name: getattr(tasks, name) for name in tasks.__all__}


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes records, or lines as they are, to a file and returns its name."""

    def write(*records, name="data.jsonl"):
        lines = [each if isinstance(each, str) else json.dumps(each) for each in records]
        data = "\n".join(lines).encode()
        path = tmp_path / name
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return str(path)

    return write


@pytest.fixture
def sandbox(monkeypatch):
    """Stands in for the sandbox, and returns the programs that it was given."""
    ran = []

    def run_program(source, *, seconds):
        ran.append(source)
        try:
            exec(source, {})
        except Exception as error:
            return types.SimpleNamespace(passed=False, reason=str(error))
        return types.SimpleNamespace(passed=True, reason="")

    fake = types.SimpleNamespace(run_program=run_program)
    monkeypatch.setitem(sys.modules, "cascades.evaluation.sandbox", fake)
    return ran


def prompts(task):
    return [example.prompt for example in task.examples()]


def scores(task, *texts):
    """Returns each metric of one text for every example."""
    records = [example.record for example in task.examples()]
    return {metric.name: contract.score(metric, records, texts) for metric in task.metrics}


def test_gsm8k_shows_solved_examples(write):
    shots = write(*GSM8K[:2], name="train.jsonl.gz")
    task = tasks.gsm8k(path=write(GSM8K[2]), shots=2, shots_path=shots)
    assert prompts(task) == [
        "Question: 1 + 1?\nAnswer: 1 + 1 = 2.\n#### 2\n\n"
        "Question: 2 * 600?\nAnswer: It is <<2*600=1200>>.\n#### 1,200\n\n"
        "Question: 3 - 4?\nAnswer:"
    ]
    assert task.raw_prompt and task.metrics[0].name == "exact match (strict)" and "Question:" in task.stop


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        (" So 1200.\n#### 1,200", 1, 1),
        (" So $1,200.00", 0, 0),  # as in the harness, figures are compared as they are written
        (" The answer is $1,200.", 0, 1),
        (" #### 1200. #### 7", 1, 0),  # the first there, the last here
        (" #### 7\nNo: 1200", 0, 1),
        (" no figure", 0, 0),
        ("", 0, 0),
    ],
)
def test_gsm8k_reads_two_numbers(write, text, strict, flexible):
    task = tasks.gsm8k(path=write(GSM8K[1]), shots=0, chat=True)
    found = scores(task, text)
    assert found == {"exact match (flexible)": flexible, "exact match (strict)": strict}
    assert not task.raw_prompt and task.metrics[0].name == "exact match (flexible)"


def test_squad(write):
    task = tasks.squad_v2(path=write(*SQUAD))
    assert prompts(task)[0] == "Title: Cats\n\nBackground: A cat purrs.\n\nQuestion: What purrs?\n\nAnswer:"
    best = dict.fromkeys(("exact match", "F1", "F1 (answerable)", "exact match (unanswerable)"), 1.0)
    assert scores(task, " The cat.", " unanswerable") == best
    assert scores(task, " cat", "") == best
    assert scores(task, "unanswerable", "a cat") == dict.fromkeys(best, 0.0)
    half = scores(task, "a cat barks", "a cat")  # 1 of 2 and 1 of 1 words
    assert half["F1 (answerable)"] == pytest.approx(2 / 3) and half["F1"] == pytest.approx(1 / 3)


def test_squad_shows_what_it_says_of_no_answer(write):
    first = write(*SQUAD[::-1], name="train.jsonl")
    [prompt] = prompts(tasks.squad_v2(path=write(SQUAD[0]), shots=1, shots_path=first))
    assert "\n\nAnswer: unanswerable\n\nTitle: Cats\n\n" in prompt


def test_triviaqa(write):
    task = tasks.triviaqa(path=write({"question": "Who wrote it?", "answers": ["The U.S.", "America"]}))
    assert prompts(task) == ["Question: Who wrote it??\nAnswer:"]
    assert scores(task, " the us\t") == {"exact match": 1.0, "F1": 1.0}
    assert scores(task, " us") == {"exact match": 0.0, "F1": 1.0}  # articles count in one of them


def test_nq_open(write):
    line = {"question": "who wrote it", "answer": ["The Cat", "An Owl"]}
    other = {"question": "when", "answer": ["May", "June"]}
    task = tasks.nq_open(path=write(line), shots=1, shots_path=write(other, name="train.jsonl"))
    assert prompts(task) == ["Answer these questions:\n\nQ: when?\nA: May\nQ: who wrote it?\nA:"]
    assert scores(task, " owl") == {"exact match": 1.0, "F1": 1.0}
    assert scores(task, " the cat owl")["exact match"] == 0.0


def test_webquestions(write):
    task = tasks.webquestions(path=write({"question": "where?", "answers": ["Rome", "the Capital"]}))
    assert prompts(task) == ["Question: where?\nAnswer:"] and task.name == "webqs"
    assert scores(task, " A capital!") == {"exact match": 1.0, "F1": 1.0}


def test_wmt(write):
    path = write({"en": "Good day.", "de": "Guten Tag."}, {"en": "No.", "de": "Nein."})
    task = tasks.wmt(path=path, test_set="wmt22")
    assert prompts(task) == ["English phrase: Good day.\nGerman phrase:", "English phrase: No.\nGerman phrase:"]
    found = scores(task, " Guten Tag.", " Nein.")
    assert found["chrF"] == pytest.approx(100) and found["BLEU"] < 100  # too short for pairs of four words
    assert (task.name, task.stop) == ("wmt22-en-de", ("\n",))
    back = tasks.wmt(source="de", target="en", path=path, template="translate German to English: {source}")
    assert prompts(back)[1] == "translate German to English: Nein." and back.name == "wmt14-de-en"
    assert "tok:13a" in back.metrics[0].definition and "tok:zh" in tasks.wmt(target="zh").metrics[0].definition


def test_multi30k_is_the_sentence(write):
    path = write({"en": "A dog with {braces} runs far.", "de": "Ein Hund mit {Klammern} läuft weit."})
    task = tasks.multi30k(path=path)
    assert prompts(task) == ["A dog with {braces} runs far."] and task.raw_prompt
    found = scores(task, "Ein Hund mit {Klammern} läuft weit.")
    assert found == {"BLEU": pytest.approx(100), "chrF": pytest.approx(100)}


def test_summaries(write):
    report = {"document": "It rained.\nA lot.", "summary": "Much rain fell.", "id": "34"}
    [example] = tasks.xsum(path=write(report)).examples()
    assert example.id == "34" and example.record == report
    assert example.prompt.endswith(":\n\nIt rained.\nA lot.\n\nSummary:")
    found = scores(tasks.xsum(path=write(report)), "Much rain fell.")
    assert list(found) == ["ROUGE-2", "ROUGE-1", "ROUGE-L"] and set(found.values()) == {100.0}
    path = write({"article": "It rained.", "highlights": "Rain ."})
    assert prompts(tasks.cnn_dailymail(path=path)) == ["Summarize the following article:\n\nIt rained.\n\nSummary:"]
    assert prompts(tasks.cnn_dailymail(path=path, template="summarize: {article}")) == ["summarize: It rained."]


@pytest.mark.parametrize(
    ("words", "shown"),
    [(1, "  It"), (3, "  It rained.\nA"), (4, "  It rained.\nA lot."), (9, "  It rained.\nA lot.")],
)
def test_a_long_report_is_cut(write, words, shown):
    """Behind a word; what stands between words stays."""
    path = write({"article": "  It rained.\nA lot. ", "highlights": "Rain ."})
    task = tasks.cnn_dailymail(path=path, words=words, template="<{article}>")
    assert prompts(task) == [f"<{shown}>"] and f"the first {words} words" in task.source


def test_spec_bench_has_no_score(write):
    task = tasks.spec_bench(path=write(*SPEC))
    assert [(example.id, example.prompt) for example in task.examples()] == [("81", "Write."), ("161", "Translate.")]
    assert task.metrics == () and not task.raw_prompt
    [example] = tasks.spec_bench(path=write(*SPEC), category="translation", limit=1).examples()
    assert example.record == SPEC[1]
    with pytest.raises(UserError, match="category must be one of .*, translation, writing, not 'maths'"):
        tasks.spec_bench(path=write(*SPEC), category="maths").examples()


def test_humaneval(write, sandbox):
    task = tasks.humaneval(path=write(HUMANEVAL))
    assert prompts(task) == [HUMANEVAL["prompt"]]
    assert set(task.stop) == {"\nclass", "\ndef", "\n#", "\nif", "\nprint"}
    assert scores(task, HUMANEVAL["canonical_solution"]) == {"pass@1": 1.0}
    assert sandbox[-1].endswith(f"r * r\n\n{HUMANEVAL['test']}\ncheck(area)")
    assert scores(task, "    return 0\n") == {"pass@1": 0.0} and scores(task, "") == {"pass@1": 0.0}


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        (f"Sure:\n```python\n{HUMANEVAL['prompt']}{HUMANEVAL['canonical_solution']}```\nThat is all.", 1),
        ("```\nimport math\n```\nand\n```py\ndef area(r):\n    return math.pi * r**2\n```", 1),  # the one with it
        ("```python\ndef area(r):\n    return 3.1 * r**2", 1),  # cut before its end
        ("    return 3.1 * r**2", 1),
        ("I would multiply by pi.", 0),
        ("```python\ndef area(r):\n    return 2\n```", 0),
    ],
)
def test_humaneval_of_a_chat_model(write, sandbox, text, passed):
    task = tasks.humaneval_instruct(path=write(HUMANEVAL))
    assert not task.raw_prompt and task.stop == () and f"```python\n{HUMANEVAL['prompt']}\n```" in prompts(task)[0]
    assert scores(task, text) == {"pass@1": passed}


def test_mbpp_shows_tasks_from_the_second_on(write, sandbox):
    path = write(*MBPP)
    task = tasks.mbpp(path=path, shots=1, shots_path=path)
    # Task 1 is not shown, and task 2, which is, not asked.
    assert [example.id for example in task.examples()] == ["1", "3"] and task.stop == ("[DONE]",)
    assert prompts(task)[1] == (
        "You are an expert Python programmer, and here is your task: Add 2. Your code should pass these tests:\n\n"
        "assert add(0) == 2\nassert add(1) == 3\nassert add(2) == 4\n[BEGIN]\n"
        "def add(x):\n  return floor(x) + 2\n[DONE]\n\n"
        "You are an expert Python programmer, and here is your task: Add 3. Your code should pass these tests:\n\n"
        "assert add(0) == 3\nassert add(1) == 4\nassert add(2) == 5\n[BEGIN]\n"
    )
    assert scores(task, MBPP[0]["code"], MBPP[2]["code"]) == {"pass@1": 1.0}
    fourth = "def add(x):\n  return x + 3 if x < 3 else 0"  # right in the tests of the prompt alone
    assert scores(task, MBPP[0]["code"], fourth) == {"pass@1": 0.5}


def test_mbpp_of_a_chat_model(write, sandbox):
    task = tasks.mbpp_instruct(path=write({**MBPP[1], "text": "Add two."}))
    assert prompts(task)[0].startswith(
        "You are an expert Python programmer, and here is your task:\nAdd two.\nYour code"
    )
    assert scores(task, f"```python\n{MBPP[1]['code']}\n```") == scores(task, MBPP[1]["code"]) == {"pass@1": 1.0}


def test_the_first_examples_keep_their_names(write):
    path = write(*GSM8K)
    assert [each.id for each in tasks.gsm8k(path=path, shots=0, limit=2).examples()] == ["0", "1"]
    # What is shown is not asked, and the others are who they were.
    assert [each.id for each in tasks.gsm8k(path=path, shots=1, shots_path=path).examples()] == ["1", "2"]


def test_naming_tasks_loads_nothing_heavy():
    code = "import sys, cascades.evaluation.tasks, cascades.evaluation.bootstrap; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "numpy" in loaded and not {"jax", "gin", "sacrebleu", "rouge_score", "datasets"} & set(loaded)


@pytest.mark.parametrize("name", FACTORIES)
def test_making_a_task_reads_nothing(name):
    task = FACTORIES[name](path="/no/such/file.jsonl")
    assert isinstance(task, contract.Task) and task.source.endswith(".") and task.source.count(". ") == 0
    for metric in task.metrics:
        assert metric.definition.endswith(".") and metric.highest in (1.0, 100.0)
    with pytest.raises(
        UserError, match="that can be read was expected, but /no/such/file.jsonl cannot be: No such file"
    ):
        task.examples()


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize(
    ("knob", "value", "words"),
    [
        ("limit", 0, "whole number from 1, not 0"),
        ("limit", True, "whole number from 1, not True"),
        ("shots", -1, "whole number from 0"),
        ("max_new_tokens", 0, "whole number from 1"),
        ("path", "", "a JSONL file, in quotes, or None"),
        ("shots_path", "", "a JSONL file, in quotes, or None"),
        ("template", "translate", "a text with {"),
        ("category", "", "the name of one"),
        ("split", "dev", "test or validation or train, not 'dev'"),
        ("words", 0, "whole number from 1, not 0"),
    ],
)
def test_a_knob_is_what_it_should_be(name, knob, value, words):
    if knob not in inspect.signature(FACTORIES[name]).parameters:
        return
    with pytest.raises(UserError, match=rf"^{name}\.{knob} must be .*{words}"):
        FACTORIES[name](**{knob: value})


@pytest.mark.parametrize("name", ["wmt", "multi30k"])
def test_two_languages(name):
    with pytest.raises(UserError, match=f"{name}.target must be .*, not 'xx'"):
        FACTORIES[name](target="xx")
    with pytest.raises(UserError, match="must be two languages, not 'de' both"):
        FACTORIES[name](source="de")
    with pytest.raises(UserError, match="a field of its own"):
        tasks.wmt(source_field="text", target_field="text")


GOOD = json.dumps(GSM8K[0])


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "holds no line: .* with question, answer"),
        (["", "  "], "holds no line"),
        ([GOOD, "{"], "line 2 of .* should be a JSON object, but is no JSON .*: mend or delete it"),
        ([GOOD, "", '"text"'], 'line 3 of .* should be a JSON object, but is "text"'),
        (['{"question": NaN, "answer": "#### 1"}'], "NaN is no number of JSON"),
        (["[" * 100_000], "line 1 of .* is no JSON"),
        (['{"question": "1?"}'], "line 1 of .* has no field 'answer', which should be a text; it has question"),
        (["{}"], "has no field 'question', .* it has none"),
        (['{"question": 1, "answer": "#### 1"}'], "should hold a text in 'question', but holds 1"),
        (['{"question": " ", "answer": "#### 1"}'], "should hold a text in 'question'"),
        (['{"question": ["1?"], "answer": "#### 1"}'], "should hold a text in 'question'"),
        (['{"id": 1, "question": "1?", "answer": "1"}'] * 2, "holds '1' twice in 'id': name every line once"),
    ],
)
def test_bad_data(write, lines, words):
    with pytest.raises(UserError, match=words):
        tasks.gsm8k(path=write(*lines), shots=0).examples()


@pytest.mark.parametrize("answers", [[], ["a", 2], "a", None, [""]])
def test_a_list_of_texts(write, answers):
    with pytest.raises(UserError, match="should hold a list of texts in 'answers'"):
        tasks.webquestions(path=write({"question": "who?", "answers": answers})).examples()


def test_one_of_two_fields(write):
    line = {name: MBPP[0][name] for name in ("task_id", "code", "test_list")}
    with pytest.raises(UserError, match="has no field 'text' or 'prompt', which should be a text"):
        tasks.mbpp_instruct(path=write(line)).examples()


def test_a_file_that_is_not_what_its_name_says(tmp_path):
    path = tmp_path / "data.jsonl.gz"
    for data in (b"{}", gzip.compress(GOOD.encode())[:-9], gzip.compress(b"x" * 99)[:20] + b"no" * 20):
        path.write_bytes(data)
        with pytest.raises(UserError, match="that can be read was expected, but .*gz cannot be"):
            tasks.gsm8k(path=str(path), shots=0).examples()
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"question": "Wo ist Köln?"}'.encode("latin-1"))
    with pytest.raises(UserError, match="line 1 of .* is no JSON .*utf-8"):
        tasks.gsm8k(path=str(path), shots=0).examples()


def test_a_line_may_hold_other_ends_of_lines(write):
    line = '{"question": "one\u2028two?", "answer": "#### 2"}'
    [example] = tasks.gsm8k(path=write("\ufeff" + line + "\r"), shots=0).examples()
    assert "one\u2028two?" in example.prompt


def test_more_shots_than_there_are(write):
    task = tasks.gsm8k(path=write(GSM8K[0]), shots=3, shots_path=write(*GSM8K[1:], name="train.jsonl"))
    with pytest.raises(UserError, match="gsm8k.shots asks for 3 examples .*train.jsonl holds 2: ask for fewer"):
        task.examples()
    with pytest.raises(UserError, match="holds nothing but what is shown"):
        tasks.gsm8k(path=write(GSM8K[0]), shots=1, shots_path=write(GSM8K[0])).examples()


def test_without_the_hub_a_file_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # which Python takes for not installed
    with pytest.raises(UserError) as told:
        tasks.gsm8k(shots=0).examples()
    assert str(told.value) == (
        "gsm8k.path is not set, and the package datasets, which would load openai/gsm8k, is not installed: set "
        "gsm8k.path to a JSONL file with the fields question and answer, or pip install -e '.[hub]'"
    )
    with pytest.raises(UserError, match="spec_bench.path is not set, and there is no data set .* category and turns"):
        tasks.spec_bench().examples()
    with pytest.raises(UserError, match="mbpp_instruct.path .* the fields text or prompt, code and test_list"):
        tasks.mbpp_instruct().examples()


def test_shots_are_looked_for_where_no_file_is_named(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="^gsm8k.shots_path is not set"):
        tasks.gsm8k(path=write(GSM8K[0])).examples()


def test_no_network(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("Couldn't reach\nthe Hub")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(UserError, match=r"nq_open could not be .* hub \(Couldn't reach the Hub\): set nq_open.path to"):
        tasks.nq_open().examples()


ROWS = {
    "gsm8k": (["openai/gsm8k", "main"], GSM8K[0]),
    "humaneval": (["openai/openai_humaneval", None], HUMANEVAL),
    "mbpp_instruct": (["google-research-datasets/mbpp", "full"], {**MBPP[0], "text": "Add.", "test_setup_code": ""}),
    "squad_v2": (["rajpurkar/squad_v2", None], {**SQUAD[0], "answers": {"text": ["A cat"], "answer_start": [0]}}),
    "triviaqa": (
        ["mandarjoshi/trivia_qa", "rc.nocontext"],
        {"question_id": "tc_2", "question": "Who?", "answer": {"aliases": ["He"], "value": "He"}, "entity_pages": {}},
    ),
    "nq_open": (["google-research-datasets/nq_open", None], {"question": "who", "answer": ["he"]}),
    "webquestions": (["stanfordnlp/web_questions", None], {"url": "", "question": "who?", "answers": ["he"]}),
    "wmt": (["wmt/wmt14", "de-en"], {"translation": {"de": "Ja.", "en": "Yes."}}),
    "multi30k": (["bentrevett/multi30k", None], {"en": "A dog.", "de": "Ein Hund."}),
    "xsum": (["EdinburghNLP/xsum", None], {"document": "It rained.", "summary": "Rain.", "id": "1"}),
    "cnn_dailymail": (["abisee/cnn_dailymail", "3.0.0"], {"article": "It rained.", "highlights": "Rain.", "id": "1"}),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_the_hub_become_lines(name, monkeypatch):
    (repository, configuration), row = ROWS[name]
    asked = []

    def load_dataset(*where, split):
        asked.append((*where, split))
        return [row]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    shots = {"shots": 0} if name == "gsm8k" else {}
    [example] = FACTORIES[name](**shots).examples()
    [(*where, split)] = asked
    assert where == [repository, configuration] and split in ("test", "validation")
    assert example.prompt and not {"url", "entity_pages", "translation"} & set(example.record)


@pytest.mark.parametrize("name", ["wmt", "xsum", "cnn_dailymail"])
def test_another_split_is_asked(name, monkeypatch):
    asked, row = [], ROWS[name][1]

    def load_dataset(*where, split):
        asked.append(split)
        return [row]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    for split in ("validation", "train"):
        assert FACTORIES[name](split=split).examples()
    assert asked == ["validation", "train"]


def test_a_row_that_is_not_as_expected(monkeypatch):
    datasets = types.SimpleNamespace(load_dataset=lambda *_, **__: [{"question": "who?", "answers": None}])
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    with pytest.raises(UserError, match="row 1 of stanfordnlp/web_questions should hold a list of texts"):
        tasks.webquestions().examples()
    with pytest.raises(UserError, match="could not be loaded"):
        tasks.squad_v2().examples()


def test_only_the_first_rows_are_taken_for_shots(monkeypatch):
    datasets = types.SimpleNamespace(load_dataset=lambda *_, **__: ({"n": number} for number in itertools.count()))
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    source = hub.Source("r", None, "train", hub.kept("n"))
    assert hub.read(source, "k", "f", first=2) == [{"n": 0}, {"n": 1}]


def evaluate(*, task):
    """Stands in for a run function."""
    return task


NAMED_MODULES = ("cascades.evaluation.tasks",)


def test_a_gin_file_makes_one(tmp_path, write):
    file = tmp_path / "run.gin"
    file.write_text(f"evaluate.task = @gsm8k()\ngsm8k.path = {write(*GSM8K)!r}\ngsm8k.shots = 0\ngsm8k.limit = 1\n")
    with gin.unlock_config():
        task = config.configure(evaluate, str(file))()
    assert task.name == "gsm8k" and len(task.examples()) == 1
