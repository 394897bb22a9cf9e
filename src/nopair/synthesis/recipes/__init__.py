"""Complete named synthesis recipes, one YAML file each.

Knows nothing: the files are data. `nopair.synthesis.recipe.load_synthesis` reads them by name and checks every key.
"""
