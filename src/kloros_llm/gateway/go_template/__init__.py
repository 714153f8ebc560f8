"""Go's text/template, as far as prompts of language models use it."""

from .budget import Budget
from .errors import TemplateError
from .evaluator import execute
from .nodes import Tree
from .parser import parse
from .values import Struct, StructField

__all__ = ["Budget", "Struct", "StructField", "TemplateError", "Tree", "execute", "parse"]
