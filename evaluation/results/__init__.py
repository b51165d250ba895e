"""From predictions to tables: cases, summaries, comparisons, ensembles."""
