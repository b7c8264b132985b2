"""What a person sees: streams in order, colours by origin, a table that fits 80 columns."""

import io

import pytest
from rich.console import Console

from cascades.decoding import Origin
from cascades.generation import Result
from cascades.runs import terminal


def console(*, is_terminal, width=80, **options):
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=width, color_system="standard", **options)


def printed(console):
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


HARD = "tab\there\r\nbell\x07 [bold]no markup[/] :smile: " + "long " * 40 + "你好\x1b[2J"


def test_a_file_gets_the_text_unchanged():
    out = console(is_terminal=False)
    screen = terminal.Screen(out, ["p"], headings=False)
    screen.show(0, HARD, Origin.DRAFT)
    screen.end(0)
    assert printed(out) == HARD + "\n"


def test_a_terminal_gets_colours_and_no_commands():
    out = console(is_terminal=True)
    screen = terminal.Screen(out, ["p"], headings=False)
    for origin, text in ((Origin.DRAFT, "a\n"), (Origin.RULE, "b"), (Origin.CORRECTION, "c"), (Origin.BONUS, HARD)):
        screen.show(0, text, origin)
    screen.end(0)
    text = printed(out)
    assert text.startswith(
        "\x1b[32ma\n\x1b[0m\x1b[33mb\x1b[0m\x1b[31mc\x1b[0m\x1b[36mtab\there\nbell␇ [bold]no markup[/]"
    )
    assert "\x1b[2J" not in text and "\r" not in text and "\x07" not in text and "你好␛[2J" in text


def test_a_terminal_that_wants_no_colour():
    out = console(is_terminal=True, no_color=True)
    screen = terminal.Screen(out, ["p", "q"], headings=True)
    screen.show(0, "a", Origin.DRAFT)
    screen.end(0)
    assert printed(out) == "[1/2] p\na\n\n"


def test_requests_wait_for_their_turn():
    out = console(is_terminal=False)
    screen = terminal.Screen(out, ["p", "q\nq", "r"], headings=True)
    screen.show(1, "one", Origin.DRAFT)
    screen.show(0, "nu", Origin.DRAFT)
    screen.end(1)
    assert printed(out) == "[1/3] p\nnu"
    screen.show(0, "ll", Origin.DRAFT)
    screen.end(0)
    assert printed(out) == "[1/3] p\nnull\n\n[2/3] q q\none\n\n"
    screen.end(2)  # an answer without text
    assert printed(out).endswith("[3/3] r\n\n\n")
    screen.close()
    assert printed(out).endswith("[3/3] r\n\n\n")


def test_an_interrupt_ends_the_line():
    out = console(is_terminal=False)
    screen = terminal.Screen(out, ["p"], headings=False)
    screen.show(0, "half", Origin.DRAFT)
    screen.close()
    assert printed(out) == "half\n"


def test_a_heading_fits_the_terminal():
    out = console(is_terminal=True, width=40, no_color=True)
    terminal.Screen(out, ["long " * 30], headings=True).show(0, "x", Origin.DRAFT)
    heading = printed(out).splitlines()[0]
    assert len(heading) == 40 and heading.endswith("…")


@pytest.mark.parametrize("method", terminal.ORIGINS)
def test_the_legend_fits_80_columns(method):
    out = console(is_terminal=True, no_color=True)
    terminal.legend(out, method)
    assert printed(out).count("\n") == 1
    silent = console(is_terminal=False)
    terminal.legend(silent, method)
    assert printed(silent) == ""


def result(tokens=2000, calls=500, seconds=100.0, compiled=3.0, start=0.0, **others):
    stats = {
        "tokens_out": tokens,
        "verifier_calls": calls,
        "accepted": 900,
        "drafted": 1000,
        "deferred": 50.0,
        "decided": 1000,
        "block_efficiency": tokens / calls,
        "acceptance_rate": 1.0,
        "deferral_rate": None,
        "ttft_s": 1000.0,
        "wall_s": seconds,
        "start_s": start,
        "tokens_per_s": tokens / seconds,
        "compile_s": compiled,
    }
    return Result("p", "", [], [], "length", stats | others)


def table(results):
    out = Console(file=io.StringIO(), width=80)
    out.print(terminal.table(results))
    lines = printed(out).splitlines()
    assert all(len(line) <= 80 for line in lines) and not any("…" in line for line in lines)
    return [line.split() for line in lines if line.strip() and "─" not in line]


def test_the_table_has_a_row_a_request_and_one_of_the_whole():
    head, first, second, whole = table(
        [(1, result(tokens=1000, calls=1000, start=12400.0)), (0, result(seconds=12345.678))]
    )
    assert " ".join(head) == "request tokens ended by tok/call accept defer first time tok/s"
    assert first == ["1", "2000", "length", "4.00", "100%", "–", "1000", "s", "12346", "s", "0.2"]
    assert second[:4] == ["2", "1000", "length", "1.00"]
    assert whole == ["all", "2", "3000", "2.00", "90%", "5%", "–", "12446", "s", "0.2"]


def test_time_passes_once_for_requests_side_by_side():
    spans = ((0.0, 4.0), (0.0, 5.0), (4.0, 0.5), (4.5, 1.5), (100.0, 2.0))  # the last came when all had ended
    results = [
        (at, result(seconds=wall, start=start, compiled=3.0 * (at == 0))) for at, (start, wall) in enumerate(spans)
    ]
    whole = table(results)[-1]
    assert whole[-3:] == ["8.00", "s", "1250.0"]
    assert terminal.compile_seconds(results) == 3.0


def test_one_request_needs_no_sum_and_many_no_rows():
    assert len(table([(0, result())])) == 2
    rows = table([(index, result()) for index in range(500)])
    assert len(rows) == 2 and rows[1][:3] == ["all", "500", "1000000"]


def test_shares_by_position_are_of_summed_counts():
    def result(drafted, shares):
        stats = {"drafted_by_position": drafted, "acceptance_by_position": shares}
        return Result("", "", [], [], "length", stats)

    assert terminal.positions([(0, result([0, 0], [None, None]))]) == ""
    found = terminal.positions([(0, result([30, 10, 0], [0.5, 0.1, None])), (1, result([10, 0, 0], [0.9, None, None]))])
    assert found == "accepted at position 1, 2, … of a draft: 60%, 10%"


COSTS = {"draft": 0.08, "catch_up": 0.1, "verify": [1.0, 1.1, 1.1, 1.3, 1.3, 1.42], "unit_s": 0.02, "given": False}


def test_the_speed_is_told_against_the_verifiers_own_pass_and_the_costs_as_they_were_at_last():
    first = result(tokens=100, seconds=2.5, prefill_s=0.5, costs=COSTS | {"unit_s": 0.03})
    last = result(tokens=50, seconds=1.0, prefill_s=0.5, costs=COSTS)
    told, again = terminal.costs([(1, first), (0, last)])
    assert told == (
        "decoding 1.60x as fast as the verifier alone, computed from its own measured pass (20.0 ms); of that a "
        "drafter step takes 0.08, a pass over k drafts 1.10 (k = 1), 1.30 (k = 4), 1.42 (k = 5)"
    )
    assert again.endswith('--gin.COSTS="(0.080, (1.000, 1.100, 1.100, 1.300, 1.300, 1.420), 0.100)"')


def test_costs_that_were_given_need_not_be_told_how_to_give():
    (told,) = terminal.costs([(0, result(prefill_s=1.0, costs=COSTS | {"given": True, "verify": [1.0, 1.1]}))])
    assert told.endswith("a pass over k drafts 1.10 (k = 1)")
    assert terminal.costs([(0, result(prefill_s=1.0, costs=COSTS | {"given": True, "unit_s": None}))]) == []


@pytest.mark.parametrize("others", [{"costs": None}, {}], ids=str)
def test_nothing_is_told_where_there_are_no_costs(others):
    assert not terminal.costs([(0, result(prefill_s=1.0, **others))])
