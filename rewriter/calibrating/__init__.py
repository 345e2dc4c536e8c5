"""Parts of calibration: `probe` fetches values, `histogram` counts them, `thresholds` picks ranges from the counts."""
