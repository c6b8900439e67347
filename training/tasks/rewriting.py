"""What may be replaced in an expression: parts of it, up to the order of terms and factors.

An expression is brought to a normal form in which sums and products are flat and sorted, so that
`b+c` is found in `a+b+c`, `c-b` in `a-b+c` and `4*3` in `3*2*4`, but `3+2` is not in `10-3+2`.
Replacing a part by something of equal value leaves the value of the whole as it was.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from training.tasks.expressions import Tree

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Sum:
    """Signed terms, sorted; no term is itself a sum. One term alone only if it is negative."""

    terms: tuple[tuple[int, "Form"], ...]


@dataclass(frozen=True, slots=True)
class Product:
    """Two or more factors, sorted; no factor is itself a product or negative."""

    factors: tuple["Form", ...]


Form = int | Sum | Product


def normal_form(tree: Tree) -> Form:
    """The same for trees that differ only by the order and nesting of sums and of products."""
    if isinstance(tree, int):
        return tree
    left, right = normal_form(tree.left), normal_form(tree.right)
    if tree.operator == "*":
        return _product([left, right])
    return _sum([(1, left), (1 if tree.operator == "+" else -1, right)])


def replacements(whole: Form, part: Form, by: Form) -> Iterator[Form]:
    """Every form that `whole` becomes when `by` takes the place of one occurrence of `part`."""
    if whole == part:
        yield by
    elif isinstance(part, Sum) and len(part.terms) == 1:
        # -(2*3) is found wherever 2*3 is: -(2*3*4) holds it too.
        yield from replacements(whole, part.terms[0][1], _sum([(-1, by)]))
    elif isinstance(whole, Sum):
        yield from _in_sum(whole, part, by)
    elif isinstance(whole, Product):
        yield from _in_product(whole, part, by)


def size(form: Form) -> int:
    """How many numbers the form holds."""
    if isinstance(form, Sum):
        return sum(size(term) for _, term in form.terms)
    return sum(map(size, form.factors)) if isinstance(form, Product) else 1


def _in_sum(whole: Sum, part: Form, by: Form) -> Iterator[Form]:
    if isinstance(part, Sum):
        for sign in (1, -1):
            signed = [_signed(sign * inner_sign, term) for inner_sign, term in part.terms]
            rest = _without(whole.terms, signed)
            if rest is not None:
                yield _sum([*rest, (sign, by)])
    for index, (sign, term) in enumerate(whole.terms):
        for replaced in replacements(term, part, by):
            yield _sum([*whole.terms[:index], (sign, replaced), *whole.terms[index + 1 :]])


def _in_product(whole: Product, part: Form, by: Form) -> Iterator[Form]:
    if isinstance(part, Product):
        rest = _without(whole.factors, part.factors)
        if rest is not None:
            yield _product([*rest, by])
    for index, factor in enumerate(whole.factors):
        for replaced in replacements(factor, part, by):
            yield _product([*whole.factors[:index], replaced, *whole.factors[index + 1 :]])


def _without(items: Iterable[Item], taken: Iterable[Item]) -> list[Item] | None:
    left, wanted = Counter(items), Counter(taken)
    return list((left - wanted).elements()) if wanted <= left else None


def _sum(terms: Iterable[tuple[int, Form]]) -> Form:
    flat: list[tuple[int, Form]] = []
    for sign, term in terms:
        if isinstance(term, Sum):
            flat += [(sign * inner_sign, inner) for inner_sign, inner in term.terms]
        else:
            flat.append((sign, term))
    flat = [_signed(sign, term) for sign, term in flat]
    if len(flat) == 1 and (flat[0][0] > 0 or isinstance(flat[0][1], int)):
        sign, term = flat[0]
        return sign * term if isinstance(term, int) else term
    return Sum(tuple(sorted(flat, key=repr)))


def _signed(sign: int, term: Form) -> tuple[int, Form]:
    """One way to write each term: 5+(-2) is 5-2, and 5-0 is 5+0."""
    if not isinstance(term, int) or term > 0:
        return sign, term
    return (-sign, -term) if term else (1, 0)


def _product(factors: Iterable[Form]) -> Form:
    sign = 1
    flat: list[Form] = []
    for factor in factors:
        # A negative factor is the one-term sum, or the negative number, that `_sum` leaves.
        if isinstance(factor, Sum) and len(factor.terms) == 1:
            sign, factor = -sign, factor.terms[0][1]
        elif isinstance(factor, int) and factor < 0:
            sign, factor = -sign, -factor
        flat += factor.factors if isinstance(factor, Product) else [factor]
    form = flat[0] if len(flat) == 1 else Product(tuple(sorted(flat, key=repr)))
    return form if sign > 0 else _sum([(-1, form)])
