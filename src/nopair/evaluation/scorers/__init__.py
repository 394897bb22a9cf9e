"""Who scores an edit: a vision-language model under a rubric, or features of images compared.

Knows: what is asked, how an answer is read, and what became of every question. An answer that is not there stays
missing. Refuses to know: which editor made the image.
"""
