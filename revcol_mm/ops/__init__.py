"""Reversible chains: equations 2 and 3 of the RevCol paper, for arbitrary functions. Depends on torch only.

::

    c[i][l] = F[i][l](...) + alpha[i][l] * c[i-1][l]

Describe every link ``i`` (a column of RevCol) as a list with one :class:`Coupling` for each level ``l``, then
run the links::

    links = [[Coupling(level=0, reads=(None, 1), function=bottom, alpha=alpha0),  # F reads x and level 1
              Coupling(level=1, reads=(0,), function=top, alpha=alpha1)], ...]  # F reads the updated level 0

    for link in links:  # plain: autograd stores the activations of every F
        features = couple(link, x, features)

    chain = ReversibleChain(links)  # reversible: stores 2 bits per element and link at alpha = 0.5
    for link in links:
        features = chain(link, x, features)

    features = uncouple(links[-1], x, features)  # approximate inverse: the features before the last link

A link may update the levels in any order, and every level may have its own module and shape. The only
restriction: ``F`` must not read the level that it updates. :func:`revcol_mm.testing.check_reversible`
compares plain and reversible training of a chain.
"""

from .coupling import Coupling, couple, uncouple
from .reversible import ReversibleChain, check_reconstruction

__all__ = ['Coupling', 'ReversibleChain', 'check_reconstruction', 'couple', 'uncouple']
