"""What users read: Prometheus, the JSON document, the summary for people, the live lines. Rows in, text out."""
