"""Recipes: each is run by CI."""
