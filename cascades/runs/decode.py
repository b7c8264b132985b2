"""Decodes prompts: the run function of `launch/decode.py`."""

import pathlib
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from rich.console import Console

from cascades import hosts, rules
from cascades.checkpoints import cache_directory
from cascades.errors import UserError
from cascades.generation import (
    Engine,
    Finished,
    PairSpec,
    PromptSpec,
    Query,
    Result,
    Settings,
    build,
    compilation_cache,
    dtype_taken,
    generate,
    load_pair,
    queries,
    query,
    records,
    with_name,
)
from cascades.generation import prompts as prompt_files
from cascades.generation.prompts import Bad
from cascades.runs import answers, terminal


def decode(
    *,
    pair: PairSpec,
    settings: Settings,
    prompts: PromptSpec = PromptSpec(),
    prompt: Sequence[str] | None = None,
    input: str | None = None,
    output: str | None = None,
    shard: str | None = None,
    default_prompt: str | None = None,
    config_text: Callable[[], str] | None = None,
) -> list[Result]:
    """Decodes prompts with a pair of models, streaming to the standard output.

    A prompt that cannot be decoded is told in one sentence, and gets a line with `error` in `output`; the others get
    their answers.

    Args:
      pair: the models. settings: how they decode. prompts: how a text becomes a prompt.
      prompt, input, output: from the command line: prompts, a JSONL file of them, a JSONL file for results.
        A line of `input` may name its own `rule`, one of those that are compiled in, and have its own `alpha` and
        `strict`.
      shard: from the command line: "I/N" decodes every N-th prompt from the I-th on, counted from 0, as if the others
        were decoded too; so that N machines share a file.
      default_prompt: what is decoded when neither is given and nobody sits at the terminal.
      config_text: gives the whole configuration, which is saved beside `output`.

    Raises:
      UserError: any input that cannot be used, in one sentence.
      Unanswered: once all is done, if there are prompts without an answer, or without a whole one.
    """
    pair = pair.needed(settings)
    pair.layouts(settings.batch_size)  # what cannot be placed is told before anything is read
    interactive = not prompt and input is None and sys.stdin.isatty() and not hosts.several()
    entries = prompt_files.collect(prompt, input)
    if not entries and not interactive:
        if not isinstance(default_prompt, str) or not default_prompt.strip():
            raise UserError("at least one prompt is needed: give --prompt=TEXT or --input=FILE.jsonl")
        entries = [{"prompt": default_prompt}]
    hosts.agree({"the prompts": prompt_files.summary(entries)})
    share, copies = prompt_files.share(shard, len(entries)), prompt_files.copies(entries)
    entries, copies = [entries[place] for place in share], [copies[place] for place in share]
    if output is not None:
        hosts.lead(lambda: records.check_writable(output))
    out, err = terminal.consoles(quiet=not hosts.leads())
    if not entries and not interactive:
        err.print(f"nothing to do: shard {shard} holds no prompt", highlight=False)
        if output is not None:  # as the others have one
            hosts.lead(lambda: records.open_append(output).close())
        return []
    failed: dict[int, Result] = {}
    for place, entry in enumerate(entries):
        if isinstance(entry, Bad):
            failed[place] = answers.failure(entry.prompt, entry.error, err)
    if entries and len(failed) == len(entries):  # no model is needed to say so
        if output is not None and hosts.leads():
            with records.open_append(output) as file:
                answers.write_failures(file, entries, failed)
        raise answers.unanswered(failed)
    compilation_cache()

    loaded = load_pair(pair, chat_template=prompts.chat_template)
    for remark in loaded.verifier.tokenizer.remarks:
        err.print(f"note: {remark}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    each_slot = -(-len(entries) // settings.batch_size) * settings.max_new_tokens
    each_slot = None if interactive or settings.costs else each_slot
    engine = build(loaded, settings, each_slot, memory=cache_directory() / "learnt")
    requests: dict[int, Query] = {}
    for place, entry in enumerate(entries):
        if isinstance(entry, Bad):
            continue
        label = f"prompt {place + 1} of {len(entries)}"
        try:
            request = queries(
                engine,
                [entry["prompt"]],
                raw=prompts.raw_prompt,
                control_tokens=prompts.control_tokens,
                label=label,
                rule=entry.get("rule"),
                alpha=entry.get("alpha"),
                strict=entry.get("strict"),
            )[0]
            requests[place] = with_name(request, copies[place])
        except UserError as error:
            failed[place] = answers.failure(entry["prompt"], str(error), err)
    places = list(requests)
    tokens = repr([(request.ids, request.rule, request.alpha, request.strict) for request in requests.values()])
    hosts.agree({"the tokens, rules and thresholds of the prompts": f"checksum {zlib.crc32(tokens.encode()):08x}"})
    if interactive or requests:
        err.print(describe(engine), highlight=False, soft_wrap=True)
        if pair.dtype is None:
            err.print(dtype_taken(), style="dim", markup=False, highlight=False, soft_wrap=True)
        if out.is_terminal:
            terminal.legend(err, settings.method)
    file = hosts.lead(lambda: records.open_append(output)) if output is not None else None
    if config_text and output is not None and hosts.leads():
        pathlib.Path(output).expanduser().with_suffix(".config.gin").write_text(config_text(), encoding="utf-8")

    results: list[tuple[int, Result]] = []
    try:
        answers.write_failures(file, entries, failed)
        if interactive:
            events = _chat(engine, out, err, prompts)
        else:
            events = _stream(engine, list(requests.values()), out, err, places=places, count=len(entries))
        for index, result in events:
            results.append((index, result))
            if file:
                records.append(file, answers.record(result, None if interactive else entries[places[index]]))
    finally:
        if results:
            err.print(terminal.table(results, None if interactive else places))
            for told in (terminal.positions(results), terminal.without_drafter(results), *terminal.costs(results)):
                if told:  # what is to be copied is not broken into lines
                    err.print(told, highlight=False, soft_wrap="--gin." in told)
            seconds = terminal.compile_seconds(results)
            err.print(f"compiled in {seconds:.1f} s, not counted above", highlight=False)
        if file:
            file.close()
    if interactive:
        return [result for _, result in results]
    ended = failed | {places[index]: result for index, result in results}
    if any(result.error for result in ended.values()):
        raise answers.unanswered(ended)
    return [ended[place] for place in sorted(ended)]


def _stream(
    engine: Engine,
    requests: Sequence[Query],
    out: Console,
    err: Console,
    *,
    places: Sequence[int] = (0,),
    count: int = 1,
) -> Iterator[tuple[int, Result]]:
    """Prints the text of requests as it is decided; yields each result as it ends.

    Args:
      places: of the requests among `count` prompts, some of which may not be decoded.
    """
    if not requests:
        return
    prompts = dict.fromkeys(range(count), "") | {at: each.prompt for at, each in zip(places, requests, strict=True)}
    screen = terminal.Screen(out, list(prompts.values()), headings=count > 1)
    for place in prompts.keys() - places:
        screen.skip(place)
    waiting = err.status("compiling; a second run finds the programs in its cache") if err.is_terminal else _Quiet()
    smooth = bool(hosts.agreed(np.int32(out.is_terminal)))  # every host takes the same steps
    try:
        with waiting:
            events = generate(engine, requests, rounds=1 if smooth else 8)
            event = next(events, None)
        while event is not None:
            if isinstance(event, Finished):
                screen.end(places[event.index])
                if event.result.error:
                    where = f"prompt {places[event.index] + 1} of {count}: " if count > 1 else ""
                    answers.tell(err, where + event.result.error)
                yield event.index, event.result
            else:
                screen.show(places[event.index], event.text, event.origin)
            event = next(events, None)
    finally:
        screen.close()


def _chat(engine: Engine, out: Console, err: Console, how: PromptSpec) -> Iterator[tuple[int, Result]]:
    """A conversation at the terminal; an empty line or Ctrl-D ends it."""
    tokenizer = engine.pair.verifier.tokenizer
    err.print("Type a prompt; an empty line ends the conversation.", highlight=False)
    messages: list[dict[str, str]] = []
    turn = 0
    while (line := _ask(out)).strip():
        try:
            if tokenizer.has_chat_template and not how.raw_prompt:
                messages.append({"role": "user", "content": line})
                ids = tokenizer.chat(messages, special=bool(how.control_tokens))
                request = query(engine, line, ids, "the conversation")
            else:
                ids = tokenizer.prompt(line, raw=how.raw_prompt, control_tokens=how.control_tokens)
                request = query(engine, line, ids)
        except UserError as error:
            answers.tell(err, str(error))
            messages = []
            continue
        for _, result in _stream(engine, [request], out, err):
            messages.append({"role": "assistant", "content": result.text})
            yield turn, result
            if result.error:
                messages = []
            turn += 1


def _ask(out: Console) -> str:
    try:
        return out.input("[bold]> [/]")
    except EOFError:
        out.print()
        return ""


def describe(engine: Engine) -> str:
    """One line that says what decodes, and whether the output follows the verifier's law."""
    settings, pair = engine.settings, engine.pair
    if settings.method in ("verifier_only", "drafter_only"):
        language = pair.verifier if settings.method == "verifier_only" or not pair.drafter else pair.drafter
        return f"{settings.method}: {language.name}"
    name = getattr(settings.rule, "__name__", "rule")
    plain = settings.plain_rule is rules.lossless
    law = "lossless" if plain and settings.method == "speculative" else "lossless: false"
    how = "" if settings.method == "sequence_cascade" or plain else f", rule {name}"
    alpha = "" if plain else f", alpha {settings.alpha:g}"
    more = f"; requests may name {', '.join(settings.rule_names[1:])}" if settings.more_rules else ""
    return f"{settings.method}: {pair.drafts} -> {pair.verifier.name}{how}{alpha} ({law}){more}"


class _Quiet:
    """Stands in for a spinner where nobody looks."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None
