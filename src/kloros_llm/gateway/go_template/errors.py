"""What can be wrong with a template."""

from __future__ import annotations


class TemplateError(Exception):
    """The template cannot be read, or not be rendered with the values at hand.

    The text is what Go's text/template says, place first: `template: :LINE: …`, or, while it
    renders, `template: :LINE:COLUMN: executing "" at <…>: …`.
    """
