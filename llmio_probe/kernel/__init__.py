"""The only room that touches BPF: loader, rings, tables, record types."""
