"""One page: a template with its numbers, in a file that needs no other and no network."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rlhf_lightning.evaluation.style import figure_to_svg

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure


def render_page(template: str, filters: tuple[Callable[..., str], ...], **values: Any) -> str:
    """The template as text; `filters` go by their names in it. Everything that comes from data is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("rlhf_lightning.evaluation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({function.__name__: function for function in filters})
    return environment.get_template(template).render(**values)


def inline(figure: Figure) -> Markup:
    """The figure for a page, which must not escape it."""
    from markupsafe import Markup

    return Markup(figure_to_svg(figure))  # noqa: S704 (matplotlib escapes the texts in it)
