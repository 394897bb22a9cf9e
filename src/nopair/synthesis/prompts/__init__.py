"""What models are told to do: one text file per prompt and version, `name-version.txt`, shipped with the package.

Knows nothing: the files are data; `nopair.synthesis.wording` reads them. A file that was shipped never changes; a new
wording is a new file with a higher number. A text is a system message and holds our words only; what it is about
follows as data (see `nopair.synthesis.texts`).
"""
