"""Reversible chains: RevCol's equations 2 and 3, for any functions. They need torch only.

::

    c[i][l] = F[i][l](...) + alpha[i][l] * c[i-1][l]

Write it down once for every link (RevCol's column), with a :class:`Coupling` for each level, and run the
links::

    links = [[Coupling(level=0, reads=(None, 1), function=bottom, alpha=alpha0),  # F reads x and level 1
              Coupling(level=1, reads=(0,), function=top, alpha=alpha1)], ...]  # F reads the new level 0

    for link in links:  # plainly: autograd stores what every F computes
        features = couple(link, x, features)

    chain = ReversibleChain(links)  # reversibly: of a link are stored 2 bits an element, at alpha 0.5
    for link in links:
        features = chain(link, x, features)

    features = uncouple(links[-1], x, features)  # back to the link before, approximately

A link may update any levels in any order, each by a module of its own and of a shape of its own; but an ``F``
must not read the level that it updates. :func:`revcol_mm.testing.check_reversible` compares the ways to
train.
"""

from .coupling import Coupling, couple, uncouple
from .reversible import ReversibleChain, check_reconstruction

__all__ = ['Coupling', 'ReversibleChain', 'check_reconstruction', 'couple', 'uncouple']
