# SPDX-License-Identifier: Apache-2.0
"""A session that outlives its prover: where the process is gone, a new one is brought to the same state."""

from __future__ import annotations

from tools.prove_parts.provers import BadStatement, Outcome, Prover, ProverDied, Session, State, Theorem

# Deaths over one theorem after which it is given up; each costs a start with all imports.
MOST_DEATHS = 10
# Starts in a row that fail: the prover is not to be had, whatever the tactic.
_MOST_FAILED_STARTS = 2


class SteadySession:
    """See `Session`. A tactic that the prover dies of twice is an error of that tactic."""

    def __init__(self, prover: Prover, theorem: Theorem, most_deaths: int = MOST_DEATHS) -> None:
        """Opens the first.

        Raises:
            BadStatement, ProverDied: as `Prover.open`.
        """
        self._prover, self._theorem, self._most_deaths = prover, theorem, most_deaths
        self.deaths = 0
        self._session: Session | None = None
        self.root = self._opened().root

    @property
    def alive(self) -> bool:
        """A new process is started when it is needed."""
        return True

    def _opened(self) -> Session:
        failures = 0
        while self._session is None or not self._session.alive:
            self.close()
            try:
                self._session = self._prover.open(self._theorem)
            except ProverDied as error:
                failures += 1
                self._count_death(error, failures == _MOST_FAILED_STARTS)
            except BadStatement as error:
                if self.deaths == 0:
                    raise
                raise ProverDied(f"the statement is not accepted any more: {error}") from error
        return self._session

    def _count_death(self, error: ProverDied, is_last: bool = False) -> None:
        self.deaths += 1
        self.close()
        if is_last or self.deaths > self._most_deaths:
            raise error

    def apply(self, state: State, tactic: str) -> Outcome:
        """See `Session.apply`.

        Raises:
            ProverDied: it has died too often over this theorem.
        """
        for _ in range(2):
            try:
                return self._opened().apply(state, tactic)
            except ProverDied as error:
                self._count_death(error)
        return Outcome("error", message="the prover died of it")

    def close(self) -> None:
        """See `Session.close`."""
        if self._session is not None:
            self._session.close()
            self._session = None
