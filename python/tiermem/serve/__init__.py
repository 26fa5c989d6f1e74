"""Inference with tables on storage-class memory.

Source: Ardestani et al., Supporting Massive DLRM Inference through Software Defined Memory, arXiv 2110.11489.
"""
