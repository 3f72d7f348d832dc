"""What the report is made of, each room using only those above it:

read       schema, load                            the stages' files, whole or refused
weigh      statistics, drift, lossless, sampled, costs, interleaved, peers, prediction, predicted
conclude   arm_result, analysis, verdict           every arm, every temperature, the recommendation
say        words, facts, provenance, prose         numbers and sentences
lay out    cells, grids (results), evidence (what is behind them), decode
draw       tables (tidy, for CSV), theme, panels, charts, figures
write      page, terminal, summary, recommended, compare
"""
