"""Know your judge before you train on it: is it right, does it know how sure it may be, and does its gradient lead
anywhere?

Knows: labelled edits, a judge's answers, and what its gradient does to pixels or latents.
Refuses to know: how a judge is made. It is asked through `nopair.judges.base.Judge` and nothing else.

| File         | What it holds                                                                     |
|--------------|-----------------------------------------------------------------------------------|
| measures.py  | accuracy, AUC, calibration and bias of a list of answers: numbers in, numbers out |
| cases.py     | labelled edits, from the shapes world or a user's folder                          |
| answers.py   | a judge's log-odds for every case, in every wording                               |
| compass.py   | where the judge's gradient points, and where following it leads                   |
| summary.py   | the results as one frozen value, which audit.json holds                           |
| tables.py    | the same as tables, and those for a terminal                                      |
| report.py    | the same as a page, with charts and the surest mistakes                           |
| command.py   | `nopair judge audit`                                                              |
"""
