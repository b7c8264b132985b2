"""The tables, the page and the explanation of a bench, from lines that were made up."""

import html.parser
import io

import pytest
from rich.console import Console

from cascades.runs import bench_report

ABOUT = {"verifier": "large.gguf", "drafter": "ngram://6+small", "batch": 1, "slots": 512, "repeats": 5}
ABOUT |= {"processor": "Some <fast> CPU", "cores": 2, "device": "1 x cpu (cpu)", "jax": "0.10.2", "dtype": "bfloat16"}


def timed(kind, name, seconds, **facts):
    return {"kind": kind, "name": name, "seconds": seconds, "low": seconds, "high": 2 * seconds, **facts, **ABOUT}


def lines(wide=0.04, products=0.035, near=10.0, slow=0.8):
    """Lines of a machine that reads 10 GB/s, and a wide pass that takes `wide` seconds in place of 20 ms."""
    read = {"bytes": 200_000_000}
    return [
        timed("memory", "memory, read", 0.1, bytes=1_000_000_000, gb_per_s=10.0, of_memory=1.0),
        timed("memory", "verifier's size, read", 0.02, **read, gb_per_s=near, of_memory=near / 10),
        timed("pass", "verifier, 1 token", 0.02 / slow, **read, gb_per_s=10 * slow, of_memory=slow),
        timed("products", "verifier, 1 token", 0.019),
        timed("pass", "verifier, 9 tokens", wide, **read, gb_per_s=0.2 / wide, of_memory=0.02 / wide),
        timed("products", "verifier, 9 tokens", products),
        timed("choice", "token_v3 judges 8", 0.004),
        timed("round", "k = 8", 0.1, parts=0.08),
        {
            **{"kind": "generation", "name": "transformers, assisted", "prompts": 20, "tokens": 999, "prefill_s": 1.5},
            **{"decode_s": 123.4, "tokens_per_s": 100.5, "speed": 1.5, "speed_low": 1.25, "speed_high": 10.75},
            **{"tokens_per_call": 2.5, "same_text": 19, **ABOUT},
        },
    ]


def shown(given):
    file = io.StringIO()
    bench_report.show(given, Console(file=file, width=80))
    return file.getvalue()


def test_the_tables_fit_a_terminal():
    text = shown(lines())
    assert "…" not in text and "Some <fast> CPU, 2 cores" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["verifier,", "9", "tokens", "40.0", "40.0–80.0", "200", "5.0", "50%", "35.0"] in rows
    assert ["k", "=", "8", "100", "100–200", "80.0", "+25.0%"] in rows
    assert ["token_v3", "judges", "8", "4.00", "4.00–8.00", "16.0%"] in rows
    assert any(row[-3:] == ["1.25–10.75", "2.50", "19/20"] for row in rows)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {},
            [
                "9 tokens, 40.0 ms at 50%",
                "200.0 MB in 20.0 ms",
                "multiplying takes longer",
                "15.0 ms more",
                "other 5.00 ms",
            ],
        ),
        ({"products": 0.021}, ["what stands between the products", "1.00 ms more than reading", "other 19.0 ms"]),
        ({"slow": 0.25}, ["The largest distance: verifier, 1 token, 80.0 ms at 25%"]),
        ({"wide": 0.01, "slow": 1.25}, ["No pass is slower", "verifier, 1 token, at 125%"]),
        ({"near": 30.0}, ["read at 30.0 GB/s, from memory at 10.0: a cache holds part of them"]),
    ],
)
def test_the_largest_distance_is_explained(given, words):
    said = " ".join(bench_report.explained(lines(**given)))
    assert not [word for word in words if word not in said], said


def test_the_page_needs_no_other_file_and_closes_what_it_opens():
    class Reader(html.parser.HTMLParser):
        def __init__(self):
            super().__init__()
            self.open, self.bars = [], []

        def handle_starttag(self, tag, attrs):
            assert "src" not in dict(attrs) and "href" not in dict(attrs)
            if tag != "meta":
                self.open.append(tag)
            if tag == "div" and "style" in dict(attrs):
                self.bars.append(dict(attrs)["style"])

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    reader = Reader()
    page = bench_report.page(lines())
    reader.feed(page)
    assert not reader.open and page.count("<table>") == 4
    assert reader.bars == [f"width: {share}.0%" for share in (100, 100, 80, 50)]
    assert "Some &lt;fast&gt; CPU" in page and "The largest distance" in page
