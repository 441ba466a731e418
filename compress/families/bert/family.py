"""BERT sentence encoders."""

from pocketport.compress.families.bert.load import load_bert
from pocketport.compress.families.bert.parity import compare
from pocketport.compress.families.registry import Family

FAMILY = Family("bert", ("bert",), load_bert, compare, original="own torch of its published equations")
