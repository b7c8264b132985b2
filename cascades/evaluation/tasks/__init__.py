"""Evaluation tasks: a data set, the prompts of its examples, and the metrics of their answers.

A task is named in a gin file as `@gsm8k()`, and its knobs as `gsm8k.path = 'test.jsonl'`. Making one checks its knobs
and reads nothing; `Task.examples` reads the data, from JSONL files or from the Hugging Face hub.
"""

from cascades.evaluation.tasks.conversation import spec_bench
from cascades.evaluation.tasks.mathematics import gsm8k
from cascades.evaluation.tasks.programs import humaneval, humaneval_instruct, mbpp, mbpp_instruct
from cascades.evaluation.tasks.questions import nq_open, squad_v2, triviaqa, webquestions
from cascades.evaluation.tasks.summarization import cnn_dailymail, xsum
from cascades.evaluation.tasks.translation import multi30k, wmt

__all__ = [
    "cnn_dailymail",
    "gsm8k",
    "humaneval",
    "humaneval_instruct",
    "mbpp",
    "mbpp_instruct",
    "multi30k",
    "nq_open",
    "spec_bench",
    "squad_v2",
    "triviaqa",
    "webquestions",
    "wmt",
    "xsum",
]
