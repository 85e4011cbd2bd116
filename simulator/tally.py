"""How many jobs of a simulation wait, run and have ended, as of now."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    """What there is at the moment."""

    n_submitted: int = 0
    n_ended: int = 0
    n_running: int = 0
    n_refused: int = 0
    n_events: int = 0
    n_starts: int = 0  # of tasks
    n_given_up: int = 0
    n_services: int = 0  # of those submitted
    n_services_ended: int = 0
    gpus_by_queue: dict[str, float] = field(default_factory=dict)  # held

    @property
    def n_pending(self) -> int:
        """Jobs that wait."""
        return self.n_submitted - self.n_ended - self.n_running

    @property
    def n_to_end(self) -> int:
        """Jobs that have not ended, services apart."""
        return self.n_submitted - self.n_ended - (self.n_services - self.n_services_ended)

    @property
    def serves_only(self) -> bool:
        """Whether there are services, some to this day, and nothing else ever was."""
        return self.n_services_ended < self.n_services == self.n_submitted
