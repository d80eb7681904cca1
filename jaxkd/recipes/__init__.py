"""Whole jobs on the user's own models and data, one call each."""

from jaxkd.recipes.images import ImagesRecipe as ImagesRecipe
from jaxkd.recipes.images import distill_images as distill_images
from jaxkd.recipes.recipe import Recipe as Recipe
from jaxkd.recipes.runs import Distilled as Distilled
from jaxkd.recipes.text import TextRecipe as TextRecipe
from jaxkd.recipes.text import distill_text as distill_text
