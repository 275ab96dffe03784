"""Training of EditAR: model definitions, losses, data and recipes.

Nothing here is needed to run a model; the runtime reads what `export` makes of these modules.
"""
