"""The shapes world: small scenes with a known right answer to every edit, and an oracle that scores any image exactly.

| File           | What it holds                                                                        |
|----------------|--------------------------------------------------------------------------------------|
| scenes.py      | what a scene is, in words                                                            |
| render.py      | scenes to pixels                                                                     |
| parse.py       | pixels to the nearest scene, by search                                               |
| edits.py       | instructions with their right answers; the training and the held-out split           |
| records.py     | edits with the answer taken out: all that training gets to see                       |
| pairs.py       | edits with their answers, for supervised fine-tuning alone                           |
| cases.py       | held-out edits to evaluate on                                                        |
| oracle.py      | success, preservation, realism and overall score of an edited image                  |
| corruptions.py | ways for an edited image to be bad                                                   |
| damage.py      | damage to pictures, of the kinds that editors do                                     |
| attempts.py    | attempts at edits, good and bad, with what is true of them                           |
| proof.py       | how often the oracle errs                                                            |

A leaf: it knows torch, `nopair.types` and `nopair.errors`. It refuses to know models, judges and training; the oracle
in particular contains nothing that was learned.
"""
