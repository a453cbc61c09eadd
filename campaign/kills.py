def attacks(times): return []
