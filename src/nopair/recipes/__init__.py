"""Complete named training recipes, one YAML file each.

Knows nothing: the files are data. `nopair.config.load_recipe` reads them by name and checks every key.
"""
