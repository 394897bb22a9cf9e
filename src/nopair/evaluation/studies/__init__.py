"""Studies: a claim, the editors that would show it, trained side by side with several seeds and scored by the oracle.

Knows: which recipes a claim needs, how runs are done, continued and summed up. Refuses to know: how an editor is
trained (a recipe says it) and how it is scored (`nopair.evaluation.world`).

    design       what a study is
    catalogue    the studies there are
    fingerprint  what a run is known by
    kept         JSON files
    origin       where and with what a run was made
    run          one editor: trained and scored
    judges       what an audit says of the judges
    crew         all of a study's runs, several at a time
    results      means and spreads, as JSON
    report       tables, charts, pages
    command      `nopair study`
"""
