"""Files in, values out, and back.

Knows: image files and how they fit a model's size, lists of edit jobs, how to write a file so that it is complete or
absent.
Refuses to know: models, judges, training. Nothing here reads an image that shows the result of an edit.
"""
