"""Findings: problems with data, one per kind and place, with a count, examples and a remedy."""

import logging
from dataclasses import dataclass
from typing import Iterable, Iterator

from mmengine.logging import print_log

from revcol_mm.errors import PreflightError

MAX_EXAMPLES = 5
MAX_LINES = 10  # of an error message
ERROR, WARNING = 'error', 'warning'
MAJORITY = 0.5  # with a larger share of bad objects, training on the others is not worthwhile


@dataclass
class Finding:
    """All problems of one kind in one place.

    Args:
        kind: Short name of the problem, the same for all data sets.
        where: The file, folder or data set that has the problem.
        message: What is wrong, as a plural noun phrase that follows the count.
        remedy: How to fix it, or what happens to the affected data.
        severity: 'error' or 'warning'.
        count: Number of occurrences.
        examples: Some of the occurrences.
        standalone: Whether each example is a complete statement, such as 'a.png has 3 channels'. The line
            then shows the first example instead of the count and the message.
    """

    kind: str
    where: str
    message: str
    remedy: str
    severity: str
    count: int
    examples: list[str]
    standalone: bool = False

    @classmethod
    def counted(
        cls,
        kind: str,
        where: str,
        message: str,
        remedy: str,
        examples: Iterable[object] = (),
        count: int | None = None,
        severity: str = ERROR,
    ) -> 'Finding':
        """Return a finding of counted occurrences.

        Args:
            examples: The occurrences, of which :data:`MAX_EXAMPLES` are kept.
            count: Their number. By default the number of examples, or 1 if there are none.
        """
        examples = [str(example) for example in examples]
        count = (len(examples) or 1) if count is None else count
        return cls(kind, where, message, remedy, severity, count, examples[:MAX_EXAMPLES])

    @classmethod
    def stated(
        cls, kind: str, where: str, statement: str, remedy: str, severity: str = ERROR, message: str = ''
    ) -> 'Finding':
        """Return a finding of one occurrence, given as a complete statement.

        Args:
            statement: The occurrence.
            message: Noun phrase for all occurrences, if there may be several.
        """
        return cls(kind, where, message or statement, remedy, severity, 1, [statement], standalone=True)

    @property
    def line(self) -> str:
        """The finding as one line of text."""
        if self.standalone:
            what = self.examples[0] + (f', and {self.count - 1} more like this' if self.count > 1 else '')
        else:
            what = f'{self.count} {self.message}'
            if self.examples:
                what += f', such as {self.examples[0]}'
        return f'{self.where}: {what}; {self.remedy}'


class Findings:
    """An ordered collection of findings."""

    def __init__(self) -> None:
        self._findings, self._by_kind = [], {}

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._findings)

    def extend(self, findings: Iterable[Finding]) -> None:
        """Append findings that are not here yet. A file that is read twice gives the same findings twice."""
        for finding in findings:
            if finding not in self._findings:
                self._findings.append(finding)

    def add(self, finding: Finding) -> None:
        """Add the occurrences to an earlier finding of the same kind and place, or append the finding."""
        earlier = self._by_kind.setdefault((finding.kind, finding.where), finding)
        if earlier is finding:
            self._findings.append(finding)
        else:
            earlier.count += finding.count
            earlier.examples = (earlier.examples + finding.examples)[:MAX_EXAMPLES]


def report(findings: Iterable[Finding]) -> None:
    """Log every warning, and raise all errors together, one line for each.

    Raises:
        PreflightError: If there are errors. Its message has at most :data:`MAX_LINES` lines.
    """
    findings = list(findings)
    for finding in findings:
        if finding.severity == WARNING:
            print_log(finding.line, 'current', level=logging.WARNING)
    lines = [finding.line for finding in findings if finding.severity == ERROR]
    if len(lines) > MAX_LINES:
        hidden = len(lines) - MAX_LINES + 1
        lines[MAX_LINES - 1 :] = [f'{hidden} more kinds of errors; tools/check_data.py CONFIG lists them']
    if lines:
        raise PreflightError('\n'.join(lines))


def listed(names: Iterable[str], limit: int = 20) -> str:
    """Return quoted names, separated by commas. Beyond ``limit`` they are only counted."""
    names = [repr(name) for name in names]
    return ', '.join(names[:limit]) + (f' and {len(names) - limit} more' if len(names) > limit else '')
