"""Images' names and, later, the registries that they are fetched from.

reference   names: parsing them and writing them out in full (pure)
"""
