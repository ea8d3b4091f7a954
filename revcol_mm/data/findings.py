"""What is wrong with data: of each kind one finding, with a count, examples and the remedy."""

import logging
from dataclasses import dataclass, field
from typing import Iterable, Iterator

from mmengine.logging import print_log

from revcol_mm.errors import PreflightError

MAX_EXAMPLES = 5
MAX_LINES = 10  # of an error
ERROR, WARNING = 'error', 'warning'


@dataclass
class Finding:
    """Everything of one kind that is wrong in one place.

    Args:
        kind: Short name of the kind, the same in all data sets.
        where: The file, folder or data set.
        message: What is wrong, as a noun phrase in the plural.
        remedy: What mends it, or what becomes of it.
        severity: 'error' or 'warning'.
        count: How often.
        examples: Some of them, by default up to :data:`MAX_EXAMPLES`.
        in_clauses: Whether an example is a clause, such as 'a.png has 3 channels', that needs no message.
    """

    kind: str
    where: str
    message: str
    remedy: str
    severity: str = ERROR
    count: int = 0
    examples: list[str] = field(default_factory=list)
    in_clauses: bool = False

    @property
    def line(self) -> str:
        """The finding in one line."""
        if self.in_clauses:
            what = self.examples[0] + (f', and {self.count - 1} more alike' if self.count > 1 else '')
        else:
            what = f'{self.count} {self.message}'
            if self.examples:
                what += f', such as {self.examples[0]}'
        return f'{self.where}: {what}; {self.remedy}'


class Findings:
    """A list of findings, in the order in which they were made.

    Args:
        max_examples: How many examples of each are kept. None: all.
    """

    def __init__(self, max_examples: int | None = MAX_EXAMPLES) -> None:
        self.max_examples = max_examples
        self._found, self._by_kind = [], {}

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._found)

    def extend(self, findings: Iterable[Finding]) -> None:
        """Take over findings, but for those that there are already, as of a file that is read twice."""
        self._found += [finding for finding in findings if finding not in self._found]

    def add(
        self,
        kind: str,
        where: str,
        message: str,
        remedy: str,
        examples: Iterable[object] = (),
        count: int | None = None,
        severity: str = ERROR,
        in_clauses: bool = False,
    ) -> None:
        """Add to the finding of a kind in a place, or make it.

        Args:
            kind, where, message, remedy, severity, in_clauses: As in :class:`Finding`; of the first call for
                a kind and a place.
            examples: All that was found.
            count: How many, if examples are not all of them; without examples, 1 unless given.
        """
        examples = [str(example) for example in examples]
        finding = self._by_kind.get((kind, where))
        if finding is None:
            finding = Finding(kind, where, message, remedy, severity, in_clauses=in_clauses)
            self._by_kind[kind, where] = finding
            self._found.append(finding)
        finding.count += (len(examples) or 1) if count is None else count
        finding.examples = (finding.examples + examples)[: self.max_examples]


def report(findings: Iterable[Finding]) -> None:
    """Log warnings, and raise errors together, each kind in one line.

    Raises:
        PreflightError: If there are errors, with :data:`MAX_LINES` lines at most.
    """
    findings = list(findings)
    for finding in findings:
        if finding.severity == WARNING:
            print_log(finding.line, 'current', level=logging.WARNING)
    lines = [finding.line for finding in findings if finding.severity == ERROR]
    if len(lines) > MAX_LINES:
        left = len(lines) - MAX_LINES + 1
        lines[MAX_LINES - 1 :] = [f'{left} more kinds of errors; tools/check_data.py CONFIG lists them']
    if lines:
        raise PreflightError('\n'.join(lines))
