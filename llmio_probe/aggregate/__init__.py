"""Batches to series: buckets, histograms, streams, busy time. Pure NumPy, no I/O, no clock."""
