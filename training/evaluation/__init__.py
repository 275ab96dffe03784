"""Measures a bundle on public benchmarks: PIE-Bench, and translations from depth, edges and segmentation."""
