"""From a folder of photos to a training set: scan, caption, propose, verify, write; and a look at the result.

Knows: what is asked of which model about a photo, how answers are checked, kept, and never paid for twice.
Refuses to know: training. Captions, file names and answers are data from strangers: none of them becomes part of what a
model is told to do.
"""
