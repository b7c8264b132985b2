"""What an inspection says, for a person and for a machine."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cascades.errors import UserError
from cascades.inspection.model import inspect, to_json
from cascades.inspection.pair import inspect_pair, pair_to_json

Line = tuple[str, str, str]  # title, text, style

_TITLES = 18  # columns
_UNITS = (" ", " K", " M", " G", " T")


def run(
    uris: Sequence[str], *, preset: str | None = None, drafter_preset: str | None = None, as_json: bool = False
) -> bool:
    """Prints what one model is, or two: a verifier and its drafter.

    Args:
      uris: one or two.
      preset, drafter_preset: the shapes where the files leave them open.
      as_json: one object instead of lines.

    Returns:
      Whether all of it would load.

    Raises:
      UserError: more than two.
    """
    if len(uris) > 2:
        raise UserError(f"one model or a pair can be inspected, verifier first, but {len(uris)} were given.")
    if len(uris) == 2:
        report = pair_to_json(inspect_pair(*uris, preset=preset, drafter_preset=drafter_preset))
    else:
        report = to_json(inspect(uris[0], preset))
    if as_json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        _print(list(pair_lines(report) if len(uris) == 2 else model_lines(report)))
    return report["loads"]


def model_lines(model: dict[str, Any], title: str = "model") -> Iterator[Line]:
    """The report of `to_json`, line by line."""
    yield title, model["uri"], "bold"
    if model["path"] not in (None, model["uri"]):
        yield "path", model["path"], ""
    if model["format"]:
        yield "format", model["format"] + ("" if model["bytes"] is None else f", {_count(model['bytes'])}B"), ""
    if model["weights"]["tensors"]:
        kinds = ", ".join(f"{kind} {_count(count).strip()}" for kind, count in model["weights"]["types"].items())
        yield "weights", f"{model['weights']['tensors']} tensors: {kinds}", ""
        yield "quantisation", ", ".join(model["weights"]["quantised"]) or "none", ""
    if model["architecture"]:
        yield "family", model["architecture"]["family"], ""
        if model["parameters"] is not None:
            yield "parameters", f"{model['parameters']:,} ({_count(model['parameters']).strip()})", ""
        yield from _architecture(model["architecture"])
    if model["tokenizer"]:
        yield from _tokenizer(model["tokenizer"], model["architecture"])
        yield "chat template", ", ".join(model["chat_templates"]) or "none", ""
    for note in model["notes"]:
        yield "note", note, "yellow"
    yield from _verdict(model["problems"], "it would load")


def pair_lines(report: dict[str, Any]) -> Iterator[Line]:
    """The report of `pair_to_json`, line by line."""
    yield from model_lines(report["verifier"], "verifier")
    yield "", "", ""
    pair = report["pair"]
    if report["drafter"]:
        yield from model_lines(report["drafter"], "drafter")
        yield "", "", ""
    yield "pair", pair["drafter"], "bold"
    if pair["looks_up"] is not None:
        yield "look-up", f"the last {pair['looks_up']} tokens in the text itself, without weights", ""
    if "shared_vocabulary" in pair:
        yield "shared vocabulary", f"{pair['shared_vocabulary']} tokens", ""
        if at := pair["first_difference"]:
            yield "first difference", f"{at['id']}: {at['verifier']!r}, the drafter's is {at['drafter']!r}", ""
        starts = {who: ", ".join(map(_named, tokens)) or "nothing" for who, tokens in pair["before"].items()}
        same = starts["verifier"] == starts["drafter"]
        told = starts["verifier"] if same else f"{starts['verifier']}, the drafter's {starts['drafter']}"
        yield "before a text", told, ""
        for who in ("verifier", "drafter"):
            if only := pair[f"ends_only_{who}"]:
                yield "ends of turn", f"only the {who} ends at {', '.join(map(_named, only))}", "yellow"
    large, small = pair["contexts"]["verifier"], pair["contexts"]["drafter"]
    if large is not None and small is not None:
        short = f": behind {small} tokens nothing is drafted" if small < large else ""
        yield "contexts", f"{large}, the drafter's {small}{short}", ""
    if pair["reads_features"]:
        yield "features", "the drafter reads the verifier's hidden states", ""
    alone = [who for who in ("verifier", "drafter") if report[who] and not report[who]["loads"]]
    yield from _verdict(
        [{"part": who, "reason": "would be refused, see above"} for who in alone] + pair["problems"], "they go together"
    )


def _architecture(shape: dict[str, Any]) -> Iterator[Line]:
    layers = str(shape["num_layers"])
    if "num_decoder_layers" in shape:
        layers = f"{layers} of the encoder, {shape['num_decoder_layers']} of the decoder"
    heads = f"{shape['num_heads']} heads of {shape['head_dim']}"
    if shape.get("num_kv_heads", shape["num_heads"]) != shape["num_heads"]:
        heads += f", {shape['num_kv_heads']} of keys and values"
    yield "layers", layers, ""
    yield "widths", f"{shape['d_model']}, feed-forward {shape['d_ff']}", ""
    yield "heads", heads, ""
    head = f"head of its own for {shape['head_tokens']}" if shape.get("head_tokens") else "head of its own"
    yield "logits", f"{shape['vocab_size']}, {'tied head' if shape['tied_head'] else head}", ""
    yield "context", str(shape["context_length"]), ""
    if "rope_theta" not in shape:
        yield "positions", f"relative, {shape['buckets']} buckets up to {shape['max_distance']}", ""
        return
    rope = f"theta {shape['rope_theta']:g}"
    if shape["local_rope_theta"] is not None:
        rope += f", {shape['local_rope_theta']:g} on sliding layers"
    if scaling := shape["rope_scaling"]:
        rope += f", {scaling['kind']} scaling by {scaling['factor']:g}"
        if scaling["kind"] == "llama3":
            rope += f" from {scaling['original_context_length']}"
    yield "rope", rope, ""
    if local := shape["local_layers"]:
        whole = [str(i) for i in range(shape["num_layers"]) if i not in local]
        rest = f"all but {', '.join(whole)}" if whole else "all"
        yield "sliding layers", f"{rest}, window {shape['window']}", ""


def _tokenizer(said: dict[str, Any], shape: dict[str, Any] | None) -> Iterator[Line]:
    padding = 0 if shape is None else shape["vocab_size"] - said["vocabulary"]
    behind = f", and {padding} logits of padding" if padding > 0 else ""
    yield "tokenizer", f"{said['kind']}, {said['vocabulary']} tokens{behind}", ""
    yield "BOS", _named(said["bos"]), ""
    yield "before a text", ", ".join(map(_named, said["before"])) or "nothing", ""
    if said["behind"]:
        yield "behind a text", ", ".join(map(_named, said["behind"])), ""
    yield "ends of turn", ", ".join(map(_named, said["ends_of_turn"])) or "none", ""
    count, first = said["control"]["count"], said["control"]["first"]
    more = f" and {count - len(first)} more" if count > len(first) else ""
    yield "control tokens", f"{count}: {' '.join(map(_shown, first))}{more}" if count else "none", ""


def _verdict(problems: Sequence[dict[str, str]], good: str) -> Iterator[Line]:
    for problem in problems:
        yield "refused", f"{problem['part']}: {problem['reason']}", "red"
    if not problems:
        yield "ok", good, "green"


def _named(token: dict[str, Any] | None) -> str:
    return "none" if token is None else f"{_shown(token['piece'])} ({token['id']})"


def _shown(piece: str) -> str:
    """A piece as it is, unless it holds what a terminal would obey."""
    return piece if piece.isprintable() else repr(piece)


def _count(number: int) -> str:
    """Three digits and a prefix of a unit."""
    power = next((i for i in range(len(_UNITS)) if number < 999.5 * 1000**i), len(_UNITS) - 1)
    return f"{number / 1000**power:.3g}{_UNITS[power]}"


def _print(lines: Sequence[Line]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        for title, text, _ in lines:
            print(f"{title:<{_TITLES}}{text}".rstrip())
        return
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim", min_width=_TITLES, no_wrap=True)
    table.add_column(overflow="fold")
    for title, text, style in lines:
        table.add_row(Text(title, style=style if title in ("ok", "refused", "note") else ""), Text(text, style=style))
    console.print(table)
