"""The same prompts by transformers: plain, assisted by the drafter, and with its look-up of the prompt."""

import importlib
import importlib.util
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from cascades import checkpoints
from cascades.checkpoints.load import descend
from cascades.errors import UserError
from cascades.generation import Engine, LoadedModel, PairSpec, Query, Settings, default_dtype
from cascades.models.pairing import split_drafter
from cascades.runs import machine
from cascades.runs.bench_lines import Answer

_REST = 0.3  # seconds for which threads of OpenMP may keep a processor busy once their work is done


class Peer(NamedTuple):
    """name: for people. answer: decodes one request, alone."""

    name: str
    answer: Callable[[Query], Answer]


def check(pair: PairSpec, settings: Settings) -> None:
    """Raises a UserError unless transformers is installed and can do what the settings ask; nothing is imported."""
    missing = [name for name in ("torch", "transformers", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"TRANSFORMERS needs what is not installed ({', '.join(missing)}): pip install -e '.[bench]'")
    if settings.batch_size != 1 or settings.temperature != 0 or settings.stop:
        raise UserError(
            "TRANSFORMERS decodes one prompt at a time, greedily: set BATCH_SIZE=1, TEMPERATURE=0 and STOP=[]"
        )
    for prefix, model in (("", pair.verifier), ("DRAFTER_", pair.drafter)):
        if model and (model.weights or model.cache):
            raise UserError(
                f"TRANSFORMERS has the same weights as they are: leave {prefix}WEIGHTS and {prefix}CACHE None"
            )


def load(engine: Engine, pair: PairSpec) -> tuple[list[Peer], list[str]]:
    """Loads the models once more, for transformers, and returns what can be compared.

    Returns:
      The peers, and a sentence for each that there cannot be.

    Raises:
      UserError: transformers cannot read the verifier.
    """
    torch, hf = _imported()
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    torch.set_num_threads(machine.cores())
    dtype = getattr(torch, default_dtype(pair.dtype).__name__)
    verifier = _model(pair.verifier.uri, engine.pair.verifier, dtype, engine.programs.plan.eos)
    peers = [
        Peer("transformers", _answering(verifier)),
        Peer("transformers, look-up", _answering(verifier, prompt_lookup_num_tokens=engine.settings.k_max)),
    ]
    drafter, remarks = engine.pair.drafter, []
    if drafter is None or drafter.model.feature_width is not None:
        remarks.append(f"transformers cannot be assisted by {engine.pair.drafts}, which is no model that decodes alone")
    else:
        _, uri = split_drafter(str(pair.drafter.uri) if pair.drafter else None)
        try:
            small = _model(uri, drafter, dtype, engine.programs.plan.eos)
            peers.insert(1, Peer("transformers, assisted", _answering(verifier, assistant_model=small)))
        except UserError as error:
            remarks.append(f"transformers goes without an assistant: {error}")
    return peers, remarks


def _model(uri: Any, language: LoadedModel, dtype: Any, eos: tuple[int, ...]) -> Any:
    """Returns a model of transformers', whose own habits of sampling and ending are left out."""
    _, hf = _imported()
    path = descend(checkpoints.resolve(uri))
    if language.model.start is not None:
        raise UserError(f"TRANSFORMERS compares decoders, and {language.name} reads its prompt by an encoder")
    if path.is_file() and path.suffix == ".gguf":
        source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    elif (path / "config.json").is_file() and any(path.glob("*.safetensors")):
        source = {"pretrained_model_name_or_path": str(path)}
    else:
        raise UserError(
            "TRANSFORMERS reads a GGUF file or a folder with config.json and *.safetensors, and "
            f"{language.name} is neither"
        )
    model = hf.AutoModelForCausalLM.from_pretrained(**source, dtype=dtype).eval()
    ends = list(eos) or None
    model.generation_config = hf.GenerationConfig(do_sample=False, eos_token_id=ends, pad_token_id=0)
    return model


def _answering(model: Any, **how: Any) -> Callable[[Query], Answer]:
    """Returns a function that decodes one request greedily. how: further arguments of `generate`."""
    torch, _ = _imported()

    class Clock:
        """A streamer: told of the prompt, then of each round's tokens as they are decided."""

        def __init__(self):
            self.told: list[tuple[float, int]] = []

        def put(self, value):
            self.told.append((time.perf_counter(), value.numel()))

        def end(self):
            pass

    def answer(request: Query) -> Answer:
        clock, ids = Clock(), torch.tensor([request.ids])
        least = {"min_new_tokens": request.max_new_tokens} if request.ignore_eos else {}
        began = time.perf_counter()
        with torch.inference_mode():
            told = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=request.max_new_tokens,
                streamer=clock,
                **least,
                **how,
            )
        ended = time.perf_counter()
        first, early = clock.told[1]
        time.sleep(_REST)
        return Answer(tuple(told[0, ids.shape[1] :].tolist()), first - began, ended - first, early)

    return answer


def _imported() -> tuple[Any, Any]:
    """torch and transformers: of an extra, and slow to import."""
    return importlib.import_module("torch"), importlib.import_module("transformers")
