"""Decodes prompts: the run function of `launch/decode.py`."""

import pathlib
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from cascades import checkpoints, hosts, lookahead, rules
from cascades.errors import UserError
from cascades.experiments import answers, records, terminal
from cascades.experiments import prompts as prompt_files
from cascades.experiments.prompts import Bad
from cascades.generation import Engine, Finished, Query, Result, Settings, build, generate, load_pair, queries
from cascades.generation.engine import Shapes, slots_for
from cascades.generation.stream import query
from cascades.lookahead import DraftLength
from cascades.quantization import KINDS
from cascades.sharding import STRATEGIES, Layout, layout, mesh_of

_CHAT_SLOTS = 1024  # tokens of a conversation before it is compiled for a longer one
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def decode(
    *,
    verifier: str,
    drafter: str | None = None,
    verifier_preset: str | None = None,
    drafter_preset: str | None = None,
    dtype: str | None = None,
    weights: str | None = None,
    drafter_weights: str | None = None,
    cache: str | None = None,
    drafter_cache: str | None = None,
    kernels: bool = True,
    mesh: tuple[int, int | None] | None = None,
    strategy: str = "tensor",
    drafter_strategy: str = "tensor",
    method: str = "speculative",
    rule: Callable = rules.token_v3,
    alpha: float = 0.1,
    k_max: int = 8,
    lookahead: DraftLength | Callable[[], DraftLength] = lookahead.verifier_guided,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    coupling: str = "maximal",
    bonus: str = "verifier",
    seed: int = 0,
    max_new_tokens: int = 128,
    context: int | None = None,
    batch_size: int = 1,
    stop: Sequence[str] = (),
    ignore_eos: bool = False,
    costs: tuple | None = None,
    raw_prompt: bool = False,
    control_tokens: bool | None = None,
    chat_template: str | None = None,
    prompt: Sequence[str] | None = None,
    input: str | None = None,
    output: str | None = None,
    distributed: bool = False,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    default_prompt: str | None = None,
    config_text: Callable[[], str] | None = None,
) -> list[Result]:
    """Decodes prompts with a pair of models, streaming to the standard output.

    A prompt that cannot be decoded is told in one sentence, and gets a line with `error` in `output`; the others get
    their answers.

    The arguments are the knobs of `configs/decode.gin`; see `generation.Settings` for those of the method.

    Args:
      verifier, drafter: URIs. dtype: "float32" or "bfloat16"; None is bfloat16 on a TPU or GPU, float32 on a CPU.
      weights, drafter_weights: "int8" quantises the matrices of a model, "w8a8" also what they are multiplied with;
        None leaves them in `dtype`. cache, drafter_cache: "int8" quantises keys and values.
      kernels: whether TPUs attend to a cache by the package's Pallas kernel; False leaves it to XLA.
      mesh: (data, model), how many ways batch and models are split over all devices; with model None, as many as are
        left. None is one device. strategy, drafter_strategy: names of `sharding.STRATEGIES`.
      raw_prompt: do not put a chat template around prompts. chat_template: the name of the one to use, of several.
      control_tokens: whether names of control tokens in a prompt become those tokens; None is in raw prompts alone.
      prompt, input, output: from the command line: prompts, a JSONL file of them, a JSONL file for results.
      distributed, coordinator, processes, process: from the command line: whether this is one of several processes, and
        what `hosts.join` is told.
      default_prompt: what is decoded when neither is given and nobody sits at the terminal.
      config_text: gives the whole configuration, which is saved beside `output`.

    Raises:
      UserError: any input that cannot be used, in one sentence.
      Unanswered: once all is done, if there are prompts without an answer, or without a whole one.
    """
    if distributed or coordinator is not None or processes is not None or process is not None:
        hosts.join(coordinator, processes, process)
    settings = Settings(
        method=method,
        rule=rule,
        alpha=alpha,
        k_max=k_max,
        lookahead=lookahead,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        coupling=coupling,
        bonus=bonus,
        seed=seed,
        max_new_tokens=max_new_tokens,
        context=context,
        batch_size=batch_size,
        stop=stop,
        ignore_eos=ignore_eos,
        costs=costs,
    )
    check_uris(verifier, drafter, settings)
    check_prompts(raw_prompt, control_tokens, chat_template)
    kind = default_dtype(dtype)
    check_quantization(weights, drafter_weights, cache, drafter_cache)
    layouts = layouts_of(mesh, strategy, drafter_strategy, batch_size)
    interactive = not prompt and input is None and sys.stdin.isatty() and not hosts.several()
    found = prompt_files.collect(prompt, input)
    if not found and not interactive:
        if not isinstance(default_prompt, str) or not default_prompt.strip():
            raise UserError("at least one prompt is needed: give --prompt=TEXT or --input=FILE.jsonl")
        found = [{"prompt": default_prompt}]
    if output is not None:
        hosts.lead(lambda: records.check_writable(output))
    out, err = terminal.consoles(quiet=not hosts.leads())
    failed: dict[int, Result] = {}
    for place, entry in enumerate(found):
        if isinstance(entry, Bad):
            failed[place] = answers.failure(entry.prompt, entry.error, err)
    if found and len(failed) == len(found):  # no model is needed to say so
        if output is not None and hosts.leads():
            with records.open_append(output) as file:
                answers.write_failures(file, found, failed)
        raise answers.unanswered(failed)
    compilation_cache()

    pair = load_pair(
        verifier,
        drafter if settings.needs_drafter else None,
        verifier_preset=verifier_preset,
        drafter_preset=drafter_preset,
        dtype=kind,
        weights=weights,
        drafter_weights=drafter_weights,
        cache=cache,
        drafter_cache=drafter_cache,
        kernels=kernels,
        layout=layouts[0],
        drafter_layout=layouts[1],
        chat_template=chat_template,
    )
    for remark in pair.verifier.tokenizer.remarks:
        err.print(f"note: {remark}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    engine = build(pair, settings)
    requests: dict[int, Query] = {}
    for place, entry in enumerate(found):
        if isinstance(entry, Bad):
            continue
        label = f"prompt {place + 1} of {len(found)}"
        try:
            requests[place] = queries(
                engine, [entry["prompt"]], raw=raw_prompt, control_tokens=control_tokens, label=label
            )[0]
        except UserError as error:
            failed[place] = answers.failure(entry["prompt"], str(error), err)
    places = list(requests)
    hosts.alike(zlib.crc32(repr([request.ids for request in requests.values()]).encode()), "prompts")
    if interactive or requests:
        err.print(describe(engine), highlight=False, soft_wrap=True)
        if out.is_terminal:
            terminal.legend(err, settings.method)
    file = hosts.lead(lambda: records.open_append(output)) if output is not None else None
    if config_text and output is not None and hosts.leads():
        pathlib.Path(output).expanduser().with_suffix(".config.gin").write_text(config_text(), encoding="utf-8")

    results: list[tuple[int, Result]] = []
    batch = 1 if interactive else settings.batch_size
    try:
        answers.write_failures(file, found, failed)
        if interactive:
            events = _chat(engine, out, err, raw=raw_prompt, control_tokens=control_tokens)
        else:
            events = _stream(engine, list(requests.values()), out, err, places=places, count=len(found))
        for index, result in events:
            results.append((index, result))
            if file:
                records.append(file, answers.record(result, None if interactive else found[places[index]]))
    finally:
        if results:
            err.print(terminal.table(results, batch, None if interactive else places))
            for told in (terminal.positions(results), terminal.without_drafter(results)):
                if told:
                    err.print(told, highlight=False, soft_wrap=True)
            seconds = terminal.compile_seconds(results, batch)
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
    shapes: Shapes | None = None,
) -> Iterator[tuple[int, Result]]:
    """Prints the text of requests as it is decided; yields each result as it ends.

    Args:
      places: of the requests among `count` prompts, some of which may not be decoded. shapes: as of `generate`.
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
            events = generate(engine, requests, rounds=1 if smooth else 8, shapes=shapes)
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


def _chat(
    engine: Engine, out: Console, err: Console, *, raw: bool, control_tokens: bool | None
) -> Iterator[tuple[int, Result]]:
    """A conversation at the terminal; an empty line or Ctrl-D ends it."""
    tokenizer = engine.pair.verifier.tokenizer
    err.print("Type a prompt; an empty line ends the conversation.", highlight=False)
    messages: list[dict[str, str]] = []
    slots, turn = 0, 0
    while (line := _ask(out)).strip():
        try:
            if tokenizer.has_chat_template and not raw:
                messages.append({"role": "user", "content": line})
                ids = tokenizer.chat(messages, special=bool(control_tokens))
                request = query(engine, line, ids, "the conversation")
            else:
                request = query(engine, line, tokenizer.prompt(line, raw=raw, control_tokens=control_tokens))
        except UserError as error:
            answers.tell(err, str(error))
            messages = []
            continue
        needed = slots_for(engine, [len(request.ids) + request.max_new_tokens])
        if needed > slots:  # room for some turns more, as every new size is compiled anew
            slots = min(max(2 * needed, _CHAT_SLOTS), engine.settings.context or engine.context)
        shapes = None if engine.settings.method == "sequence_cascade" else Shapes(1, slots, slots)
        for _, result in _stream(engine, [request], out, err, shapes=shapes):
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
    assert pair.drafter is not None
    return f"{settings.method}: {pair.drafter.name} -> {pair.verifier.name}{how}{alpha} ({law})"


def check_uris(verifier, drafter, settings: Settings) -> None:
    """Raises a UserError unless what is needed is named."""
    if not isinstance(verifier, str) or not verifier:
        raise UserError("VERIFIER must be a path or URI in quotes, as in --gin.VERIFIER=\"'hf://org/repo'\"")
    if drafter is not None and (not isinstance(drafter, str) or not drafter):
        raise UserError("DRAFTER must be a path or URI in quotes, as in --gin.DRAFTER=\"'hf://org/repo'\", or None")
    if settings.needs_drafter and drafter is None:
        raise UserError(f"METHOD='{settings.method}' needs a drafter: set DRAFTER, or METHOD='verifier_only'")


def check_prompts(raw_prompt: Any, control_tokens: Any, chat_template: Any) -> None:
    """Raises a UserError for knobs of prompts that are not what they should be."""
    if not isinstance(raw_prompt, bool):
        raise UserError(f"RAW_PROMPT must be True or False, not {raw_prompt!r}")
    if not isinstance(control_tokens, bool | None):
        raise UserError(f"CONTROL_TOKENS must be True, False or None, not {control_tokens!r}")
    if not isinstance(chat_template, str | None):
        raise UserError(f"CHAT_TEMPLATE must be the name of a chat template in quotes or None, not {chat_template!r}")


def default_dtype(name: str | None):
    """Returns the dtype of weights: what was asked, or bfloat16 on an accelerator and float32 on a CPU."""
    if name is None:
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    if not isinstance(name, str) or name not in _DTYPES:
        raise UserError(f"DTYPE must be one of {', '.join(_DTYPES)}, not {name!r}")
    return _DTYPES[name]


def check_quantization(weights: Any, drafter_weights: Any, cache: Any, drafter_cache: Any) -> None:
    """Raises a UserError for a kind of weights or of cache that is not known."""
    for knob, value in (("WEIGHTS", weights), ("DRAFTER_WEIGHTS", drafter_weights)):
        if value is not None and value not in KINDS:
            raise UserError(f"{knob} must be {' or '.join(map(repr, KINDS))} or None, not {value!r}")
    for knob, value in (("CACHE", cache), ("DRAFTER_CACHE", drafter_cache)):
        if value not in (None, "int8"):
            raise UserError(f"{knob} must be 'int8' or None, not {value!r}")


def layouts_of(mesh: Any, strategy: str, drafter_strategy: str, batch_size: int) -> tuple[Layout | None, Layout | None]:
    """Returns where verifier and drafter live: nowhere in particular without a mesh.

    Raises:
      UserError: the mesh is no pair of numbers, does not fit the devices, or does not divide the batch; an unknown
        strategy.
    """
    names = [("STRATEGY", strategy), ("DRAFTER_STRATEGY", drafter_strategy)]
    for knob, name in names:
        if name not in STRATEGIES:
            raise UserError(f"{knob} must be one of {', '.join(STRATEGIES)}, not {name!r}")
    if mesh is None:
        if hosts.several():
            raise UserError(f"several processes share a pair: set MESH, as in --gin.MESH='(1, {jax.device_count()})'")
        return None, None
    sizes = list(mesh) if isinstance(mesh, list | tuple) else []
    if len(sizes) == 2 and sizes[1] is None and type(sizes[0]) is int and sizes[0] > 0:
        sizes[1] = max(jax.device_count() // sizes[0], 1)
    if len(sizes) != 2 or not all(type(size) is int and size > 0 for size in sizes):
        raise UserError(
            f"MESH must be (data, model), two whole numbers from 1, as in (1, 4), not {mesh!r}; (1, None) splits the "
            "models over all devices"
        )
    data, model = sizes
    if batch_size % data:
        raise UserError(f"BATCH_SIZE must be a multiple of the {data} ways that MESH splits a batch, not {batch_size}")
    devices = mesh_of(jax.devices(), data, model)
    return layout(devices, strategy), layout(devices, drafter_strategy)


def compilation_cache() -> None:
    """Keeps compiled programs between runs, unless the user has a place of their own for them."""
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(checkpoints.cache_directory() / "compiled"))


class _Quiet:
    """Stands in for a spinner where nobody looks."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None
