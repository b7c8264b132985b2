"""The host's side of rows that come and go: who sits where, the text of each as it is decided, its result."""

import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from cascades import hosts
from cascades.decoding import FREE, Clock, Finish, Info, Request, State
from cascades.generation import clock, costs, memory
from cascades.generation import engine as engines
from cascades.generation.engine import Compiled, Engine, Shapes
from cascades.generation.results import Result, finish_name, origin_name, row, stats
from cascades.generation.text import Text


class Query(NamedTuple):
    """One request. prompt: its text. ids: its tokens. The rest is as in `Settings`, and each request's own.

    rule: by its name, one of `Settings.rule_names`; None is the first. name: what tells its random numbers from those
    of other requests with the same seed; see `named`.
    """

    prompt: str
    ids: tuple[int, ...]
    alpha: float
    temperature: float
    max_new_tokens: int
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    stop: Sequence[str] = ()
    ignore_eos: bool = False
    strict: int = 0
    rule: str | None = None
    name: tuple[int, int] | None = None


class Token(NamedTuple):
    """A piece of text was decided. index: of the query. origin: a number of `Origin`."""

    index: int
    text: str
    origin: int


class Finished(NamedTuple):
    """A request ended. index: of the query."""

    index: int
    result: Result


class Session:
    """One request while it sits in a slot: its text, and the times that are told of it.

    began: when it, or the batch that it was admitted with, was taken up. ready: when its prompt was read. compile_s:
    seconds that were spent compiling for it.
    """

    def __init__(self, engine: Engine, index: int, query: Query, began: float, compile_s: float):
        self.index, self.query, self.began, self.ready = index, query, began, began
        self.compile_s = compile_s
        self._method = engine.settings.method
        self._text = Text(engine.pair.verifier.tokenizer, query.stop)
        self._seen = len(query.ids)
        self._shown: list[tuple[int, int]] = []
        self._first_token = 0.0

    @property
    def length(self) -> int:
        """Tokens of its row, prompt and all, when it was last looked at."""
        return self._seen

    def take(self, look: "_Look", slot: int, now: float) -> Iterator[Token]:
        """Yields the text of the tokens that were decided since the last call, up to a stop string."""
        for token, origin in look.new(slot, self._seen):
            self._first_token = self._first_token or now
            self._shown.append((token, origin))
            yield from (Token(self.index, piece, who) for piece, who in self._text.push(token, origin))
            if self._text.stopped:
                break
        self._seen = int(look.length[slot])

    def ended(self, look: "_Look", slot: int) -> Finish:
        return Finish.STOP if self._text.stopped else Finish(int(look.finish[slot]))

    def flush(self) -> Iterator[Token]:
        """Yields what was held back, in case that a stop string began there."""
        if not self._text.stopped:
            last = self._shown[-1][1] if self._shown else 0
            yield from (Token(self.index, piece, who) for piece, who in self._text.flush(last))

    def result(self, finish: Finish, info: Info, now: float, start_s: float, told: dict | None) -> Result:
        count = len(self._shown)
        return Result(
            prompt=self.query.prompt,
            text=self._text.released,
            token_ids=[token for token, _ in self._shown],
            origins=[origin_name(origin) for _, origin in self._shown],
            finish_reason=finish_name(finish),
            error=_failure(self._method, count) if finish == Finish.ERROR else None,
            stats=stats(
                _told(self._method, info),
                count,
                wall_s=now - self.began,
                compile_s=self.compile_s,
                prefill_s=self.ready - self.began,
                ttft_s=self._first_token - self.began if self._first_token else 0.0,
                start_s=start_s,
                costs=told,
            ),
        )


class Slots:
    """The rows of one compiled loop: `admit` puts requests into free ones, `step` goes on with all of them.

    A request's text depends neither on its slot nor on who sits in the others.
    """

    def __init__(self, engine: Engine, shapes: Shapes, example: Query):
        """Compiles what is not yet compiled. shapes: rows and slots of the loop. example: one of the requests."""
        self._engine = engine
        self._compiled = costs.programs_for(engine, shapes, example.ids)
        self._state: State = engines.vacant(engine, self._compiled)
        self._sessions: list[Session | None] = [None] * shapes.batch
        self._stop = np.zeros((shapes.batch,), bool)
        self._fresh = False
        self._ran = clock.kinds(hosts.whole(self._state.clock))

    @property
    def free(self) -> int:
        """How many requests can be admitted."""
        return self._sessions.count(None)

    @property
    def busy(self) -> bool:
        return self.free < len(self._sessions)

    def admit(self, queries: Sequence[tuple[int, Query]]) -> None:
        """Prefills requests, each with its index, into free slots; they are one batch, whose time begins now."""
        for _, query in queries:  # an encoder may need another width
            costs.programs_for(self._engine, self._compiled.shapes, query.ids)
        compile_s, self._compiled.seconds = self._compiled.seconds, 0.0
        began = time.perf_counter()
        for index, query in queries:
            slot = self._sessions.index(None)
            session = Session(self._engine, index, query, began, compile_s)
            compile_s = 0.0  # told once
            request = request_of(self._engine, self._compiled, query)
            self._state = jax.block_until_ready(engines.admit(self._engine, self._compiled, self._state, request, slot))
            session.ready = time.perf_counter()
            self._sessions[slot], self._stop[slot] = session, False
        self._fresh = True

    def step(self, rounds: int, *, eager: bool = False) -> Iterator[Token | Finished]:
        """Runs at most `rounds` rounds, but one behind an admission, as a first token is shown as soon as it is there.

        Args:
          rounds: between two looks at the text. eager: look as soon as a row has ended, since someone waits for it.

        Yields:
          Tokens as they are decided, and each request's result as soon as it has ended; its slot is free from then on.
        """
        engine, compiled = self._engine, self._compiled
        longest = max((session.length for session in self._sessions if session), default=0)
        reach = costs.reach_of(compiled, longest)
        self._state = costs.corrected(engine, compiled, self._state, reach)
        fresh, self._fresh = self._fresh, False
        trial = None if fresh else costs.trial(engine, compiled, reach)
        count = 1 if fresh or trial is not None else rounds
        began = time.perf_counter()
        forced = FREE if trial is None else trial
        self._state = engines.proceed(engine, compiled, self._state, self._stop, count, forced, eager)
        look = _Look.at(self._state)
        now = time.perf_counter()
        ran, self._ran = clock.kinds(look.clock) - self._ran, clock.kinds(look.clock)
        if not fresh:  # a prompt was read in between: the first round finds no weights in the processor's caches
            costs.learn(engine, compiled, ran, reach, now - began)
        for slot, session in enumerate(self._sessions):
            if session is None:
                continue
            yield from session.take(look, slot, now)
            finish = session.ended(look, slot)
            if finish == Finish.RUNNING:
                continue
            self._sessions[slot], self._stop[slot] = None, True
            memory.learn(self._engine, self._state, slot)
            yield from session.flush()
            if not self.busy:
                memory.keep(self._engine, self._compiled)
            told = costs.told(self._compiled)
            result = session.result(finish, row(look.info, slot), now, session.began - self._engine.born, told)
            yield Finished(session.index, result)


def request_of(engine: Engine, compiled: Compiled, query: Query) -> Request:
    """Returns a request as the programs take it."""
    width = engines.prompt_width(engine, len(query.ids), compiled.shapes.slots)
    return engines.row(
        engine,
        width,
        query.ids,
        limit_of(engine, query),
        seed=query.seed,
        name=query.name or (0, 0),
        rule=engine.settings.chosen(query.rule, query.alpha),
        alpha=query.alpha,
        temperature=query.temperature,
        top_k=query.top_k,
        top_p=query.top_p,
        min_p=query.min_p,
        strict=query.strict,
        ignore_eos=query.ignore_eos,
    )


def named(queries: Sequence[Query]) -> list[Query]:
    """Gives each request that has none its name among those of a run.

    A request's random stream hangs on its own tokens, not on its place; the n-th of equal prompts gets the n-th.
    """
    copies: Counter[tuple[int, ...]] = Counter()
    told_apart = []
    for query in queries:
        told_apart.append(query if query.name else with_name(query, copies[query.ids]))
        copies[query.ids] += 1
    return told_apart


def with_name(query: Query, copy: int) -> Query:
    """Gives a request its name: that of its tokens, and how many equal ones came before it."""
    return query._replace(name=(zlib.crc32(np.asarray(query.ids, np.int32).tobytes()), copy))


def limit_of(engine: Engine, query: Query) -> int:
    """Returns the most tokens that a request's row may hold."""
    context = min(engine.context, engine.settings.context or engine.context)
    return min(len(query.ids) + query.max_new_tokens, context)


class _Look(NamedTuple):
    """The part of a state that the host reads."""

    tokens: np.ndarray
    origins: np.ndarray
    length: np.ndarray
    finish: np.ndarray
    info: Info
    clock: Clock

    @classmethod
    def at(cls, state: State) -> "_Look":
        seen = state.tokens, state.origins, state.length, state.finish, state.info, state.clock
        return cls(*hosts.whole(seen))

    def new(self, at: int, start: int) -> list[tuple[int, int]]:
        part = slice(start, int(self.length[at]))
        return list(zip(self.tokens[at, part].tolist(), self.origins[at, part].tolist(), strict=True))


def _failure(method: str, tokens: int) -> str:
    who = "drafter" if method == "drafter_only" else "verifier"
    return (
        f"the {who} says NaN or infinity where token {tokens + 1} of the answer would be, so that the answer ends "
        "before it: its weights should be finite numbers; where they are, set DTYPE='float32'"
    )


def _told(method: str, info: Info) -> Info:
    """A drafter that decodes alone does so in the verifier's place; its passes are counted under its own name."""
    if method != "drafter_only":
        return info
    return info._replace(verifier_calls=np.int32(0), drafter_steps=info.verifier_calls)
