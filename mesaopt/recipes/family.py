"""Recipes of ours."""

from mesaopt.recipes.recipe import Recipe

RECIPES: tuple[Recipe, ...] = ()
